"""Web servers over a folder: with byte ranges, without them, and one that speaks as much of S3 as reading needs."""

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape


class Server(http.server.ThreadingHTTPServer):
    """Counts what it sends.

    Attributes:
        sent: bytes of files so far.
        failures: number of requests from now on that are answered with an error.
    """

    daemon_threads = True

    def __init__(self, handler: type[http.server.SimpleHTTPRequestHandler], folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
        self.sent = 0
        self.failures = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Plain(http.server.SimpleHTTPRequestHandler):
    """Sends whole files only."""

    def log_message(self, *_: object) -> None:
        pass


class Ranges(Plain):
    """Sends parts of files."""

    server: Server

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_GET(self) -> None:
        self._send(body=True)

    def _send(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content, status = path.read_bytes(), 200
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            content, status = content[int(first) : int(last) + 1 if last else None], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", "e")
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        if body:
            self.server.sent += len(content)
            self.wfile.write(content)


class S3(Ranges):
    """Buckets are the folder's subfolders."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        if "list-type" not in query:
            self._send(body=True)
            return
        bucket, prefix = Path(self.translate_path(address.path)), query.get("prefix", [""])[0]
        found = sorted(path for path in bucket.rglob("*") if path.is_file())
        names = {path.relative_to(bucket).as_posix(): path.stat().st_size for path in found}
        names = {name: size for name, size in names.items() if name.startswith(prefix)}
        rows = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><ETag>e</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, size in names.items()
        )
        head = f"<IsTruncated>false</IsTruncated><KeyCount>{len(names)}</KeyCount>"
        page = f"<ListBucketResult>{head}{rows}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


@contextmanager
def serving(handler: type[Plain], folder: Path) -> Iterator[Server]:
    """Serve `folder` for the duration of the block."""
    with Server(handler, folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
