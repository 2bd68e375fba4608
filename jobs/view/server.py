"""The server behind `subjectloom view`: loopback only, a token in the address, and nothing but what `View` gives.

    /TOKEN/                     the page
    /TOKEN/samples?...          a page of samples, as JSON; the fields are those of `Query`
    /TOKEN/values?column=C      the classes of a column; /TOKEN/curve?column=C what thresholds would leave
    /TOKEN/picture?key=K        a tile's picture; /TOKEN/card?key=K the sample as the report shows it
    /TOKEN/rejects?...          a page of rejects; /TOKEN/reject?row=N the picture of one
    /TOKEN/exclude              POST {"key": K, "excluded": bool}

A page of another site can neither read the token nor, by a name of its own that resolves to this machine, be answered:
the Host and Origin of a request must be this server's.
"""

import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from jobs.report.page import environment
from jobs.view.data import Query, View
from schemas.errors import ConfigError, SubjectloomError

ADDRESS = "127.0.0.1"
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
MOST = 4096
"""Most bytes of a request's body."""

Fields = Mapping[str, str]
Answer = tuple[str, bytes]
"""The type of a content, and the content."""


class Server(ThreadingHTTPServer):
    """Serves a view at `address`, to programs on this machine that know the token."""

    daemon_threads = True

    def __init__(self, view: View, port: int = 0) -> None:
        super().__init__((ADDRESS, port), Handler)
        self.view = view
        self.token = secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "subjectloom", ""

    def do_GET(self) -> None:
        """Answer what is read."""
        self._answer(GET)

    def do_POST(self) -> None:
        """Answer what changes something."""
        self._answer(POST)

    def _answer(self, routes: Mapping[str, Callable[[View, Fields], Answer]]) -> None:
        address = urlsplit(self.path)
        _, token, *rest = [*address.path.split("/", 2), "", ""][:3]
        body = self._body()
        if not hmac.compare_digest(token.encode(), self.server.token.encode()) or not self._is_ours():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"the address of this page was printed when it was started")
            return
        route = routes.get(rest[0])
        if route is None or body is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here")
            return
        try:
            kind, content = route(self.server.view, body if routes is POST else dict(parse_qsl(address.query)))
        except SubjectloomError as error:
            status = HTTPStatus.BAD_REQUEST if isinstance(error, ConfigError) else HTTPStatus.NOT_FOUND
            self._send(status, "text/plain; charset=utf-8", " ".join(str(error).split()).encode())
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _is_ours(self) -> bool:
        """Whether the request was sent to this server by name, and by one of its pages if by a page."""
        origin = self.headers.get("Origin")
        is_own = origin is None or origin.removeprefix("http://") in self.server.hosts
        return self.headers.get("Host", "") in self.server.hosts and is_own

    def _body(self) -> dict[str, Any] | None:
        """The JSON of a request; {} where it has no body, None if it is none."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MOST:
            self.close_connection = True
            return None
        content = self.rfile.read(int(length))
        try:
            found = json.loads(content) if content else {}
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(content)), "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "private, max-age=600" if kind == "image/jpeg" else "no-store",
        }  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:  # noqa: ANN401
        """Print nothing: the address holds the token."""


def as_json(value: Any) -> Answer:  # noqa: ANN401 - whatever JSON has
    """Encode an answer."""
    return "application/json", json.dumps(value, ensure_ascii=False).encode()


def show_page(view: View, _: Fields) -> Answer:
    """The page itself, which asks for the rest."""
    page = environment().get_template("view.html.j2").render(view=view, columns=view.columns())
    return "text/html; charset=utf-8", page.encode()


def show_card(view: View, fields: Fields) -> Answer:
    """A sample as the report shows it."""
    key = fields.get("key", "")
    sample = view.card.fill(view.sample(key)) | {"id": "large", "shard": view.index["shard"][view.places[key]].as_py()}
    page = environment().get_template("view_card.html.j2").render(card=view.card, sample=sample)
    return "text/html; charset=utf-8", page.encode()


def exclude(view: View, fields: Mapping[str, Any]) -> Answer:
    """Put a sample on the list, or take it off."""
    return as_json({"excluded": view.exclude(str(fields.get("key", "")), excluded=fields.get("excluded") is True)})


def show_rejects(view: View, fields: Fields) -> Answer:
    """A page of rejects."""
    page = _number(fields, "page")
    return as_json(view.reject_page(fields.get("text", ""), fields.get("reason", ""), page))


def _number(fields: Fields, name: str) -> int:
    text = fields.get(name, "0")
    if not text.isdecimal() or len(text) > 12:
        raise ConfigError(f"{name} is a number")
    return int(text)


def template(name: str, kind: str) -> Callable[[View, Fields], Answer]:
    """A file that the page loads."""
    return lambda _view, _fields: (f"{kind}; charset=utf-8", environment().get_template(name).render().encode())


GET: Mapping[str, Callable[[View, Fields], Answer]] = {
    "": show_page,
    "view.js": template("view.js", "text/javascript"),
    "view.css": template("view.css", "text/css"),
    "samples": lambda view, fields: as_json(view.page(Query.of(fields))),
    "values": lambda view, fields: as_json(view.values(fields.get("column", ""))),
    "curve": lambda view, fields: as_json(view.curve(fields.get("column", ""))),
    "picture": lambda view, fields: ("image/jpeg", view.picture(fields.get("key", ""))),
    "card": show_card,
    "rejects": show_rejects,
    "reject": lambda view, fields: ("image/jpeg", view.reject_picture(_number(fields, "row"))),
}
POST: Mapping[str, Callable[[View, Any], Answer]] = {"exclude": exclude}
