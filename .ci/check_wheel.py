"""Check the files and requirements of a wheel of Subjectloom: `python .ci/check_wheel.py WHEEL`, in the clone."""

import ast
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions

PACKAGES = ("subjectloom", "schemas", "transforms", "pipelines", "training", "jobs")


def main(path: str) -> None:
    """Exit with a message per missing or superfluous file and per library that is imported but not required."""
    with zipfile.ZipFile(path) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        required = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist", [])
        sources = {name: wheel.read(name).decode() for name in packed if name.endswith(".py")}
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    own = {*subprocess.check_output(listed, text=True).splitlines()}  # noqa: S603
    problems = [f"{name} is not in the wheel" for name in sorted(own - packed)]
    problems += [f"{name} is in the wheel but not in the clone" for name in sorted(packed - own)]
    installed = {normal(re.split(r"[\s\[<>=;]", line)[0]) for line in required if "extra ==" not in line}
    distributions = packages_distributions()
    for name, source in sorted(sources.items()):
        for library in imported(source):
            if not installed & {normal(distribution) for distribution in distributions.get(library, [])}:
                problems.append(f"{name} imports {library}, which setup.py does not name in install_requires")
    sys.exit("\n".join(problems) or None)


def imported(source: str) -> set[str]:
    """Top-level names of the libraries that a module imports when it is loaded."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {*PACKAGES}


def normal(distribution: str) -> str:
    """Normalize a name as package indexes do."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


if __name__ == "__main__":
    main(sys.argv[1])
