"""Look up the pinned packages in PyPI's list of known vulnerabilities; without a network, say so and pass."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PINS = ("constraints.txt", "constraints-groundingdino.txt")


def audit(pins: str) -> bool:
    """Audit the packages that `pins` lists; return whether none is known to be vulnerable."""
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        options = [
            "--no-deps",
            "--disable-pip",
            "--progress-spinner",
            "off",
            "--format",
            "json",
            "--output",
            str(found),
        ]
        done = subprocess.run(  # noqa: S603 - with our own arguments
            [uv, "tool", "run", "--quiet", "pip-audit", *options, "--requirement", pins],
            capture_output=True,
            text=True,
            check=False,
        )
        if not found.exists():  # it could not be installed, or the list could not be asked
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            print(f"SKIPPED the audit of {pins}: {lines[-1][:200] if lines else 'pip-audit cannot run'}")
            return True
        packages = json.loads(found.read_text(encoding="utf-8"))["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        print(f"SKIPPED {len(unknown)} of {len(packages)} packages of {pins}, such as {unknown[0]}: not found")
    bad = [(package, flaw) for package in packages for flaw in package.get("vulns", ())]
    for package, flaw in bad:
        print(f"{pins}: {package['name']} {package['version']}: {flaw['id']}, mended in {flaw['fix_versions']}")
    return not bad


if __name__ == "__main__":
    audits = list(map(audit, sys.argv[1:] or PINS))
    sys.exit(not all(audits))
