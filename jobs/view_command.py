"""The command `subjectloom view`: its options, and what it prints. Its imports wait until it runs."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import out, print_lines
from jobs.stop import stoppable
from schemas.errors import InputError


def view(
    data: Annotated[str, typer.Argument(metavar="OUT", help="Folder of a finished dataset.")],
    excluded: Annotated[
        Path | None,
        typer.Option(help="File for the keys of excluded samples; by default OUT.excluded.txt, beside OUT."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port; by default a free one.", min=0, max=65_535)] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
) -> None:
    """Look through a whole dataset in the browser: search, sort, filter, try thresholds, tick what to exclude.

    The page is served to this machine only, at an address with a token. Ctrl-C ends it.
    """
    with out.status(f"reading {data}"):
        from jobs.view.data import View
        from jobs.view.server import Server

        path = excluded or default_list(data)
        shown = View(data, path)
        try:
            server = Server(shown, port)
        except OSError as error:
            raise InputError(f"port {port} cannot be used: {error.strerror}") from error
    print_lines(f"page     {server.address}", f"excluded {path}", "Ctrl-C ends it")
    if browser:
        webbrowser.open(server.address)
    with stoppable(lambda: f"{len(shown.excluded)} samples are excluded, in {path}"), server:
        server.serve_forever()


def default_list(data: str) -> Path:
    """The file for the keys of a dataset's excluded samples: beside it; here, if it is not on this machine."""
    name = data.rstrip("/")
    return Path(f"{name.rpartition('/')[2] if '://' in name else name}.excluded.txt")
