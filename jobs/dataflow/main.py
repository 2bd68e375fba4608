"""Start a build from a flex template, whose launcher hands over one flat list of arguments: ours and Beam's.

    python main.py --recipe=fastcomposer --input=gs://... --output=gs://... --runner=DataflowRunner --project=...

What is neither an option of `subjectloom build` nor a field of the recipe is Beam's.
"""

import sys
from collections.abc import Sequence

from typer.main import get_group

from jobs.arguments import check_recipe
from jobs.main import app, main
from pipelines import RECIPES


def command_line(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `subjectloom` for those of a template, each of the form --NAME=VALUE.

    A parameter that was left out comes with an empty value, an option without a value as "true" or "false". Names may
    be written with _ for -; `set` takes several fields, separated by semicolons.

    Raises:
        ConfigError: there is no such recipe.
    """
    given = [argument.removeprefix("--").partition("=")[::2] for argument in arguments if not argument.endswith("=")]
    recipe = dict(given).get("recipe", "")
    check_recipe(recipe)
    fields = RECIPES[recipe].config.model_fields
    group = get_group(app)
    parameters = [*group.commands["build"].params, *group.params]
    options = {
        name.removeprefix("--"): getattr(parameter, "is_flag", False)
        for parameter in parameters
        for name in parameter.opts
    }
    build, beam = [], []
    for name, value in given:
        dashed, field = name.replace("_", "-"), name.replace("-", "_")
        if name == "recipe":
            continue
        if name == "set":
            build += [f"--set={setting}" for setting in value.split(";")]
        elif options.get(dashed):  # it takes no value
            build += [f"--{dashed}"] if value != "false" else []
        elif dashed in options:
            build.append(f"--{dashed}={value}")
        elif field in fields:
            build.append(f"--set={field}={value}")
        else:
            beam.append(f"--{name}={value}" if value else f"--{name}")
    return ["build", recipe, *build, "--", *beam]


if __name__ == "__main__":
    sys.argv[1:] = command_line(sys.argv[1:])
    main()
