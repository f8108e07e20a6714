import hashlib
import http.server
import math
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PAGE = b"<h1>Maintenance</h1> Back soon.\n"  # HTML by its Content-Type alone


@dataclass
class Fault:
    """What goes wrong with one file's next `times` answers."""

    cut_after: int | None = None  # bytes of the body sent before the connection is cut
    ignore_range: bool = False  # answer 200 and the whole file to a Range request
    ignore_if_range: bool = False  # answer 206 although the file has changed
    # answer 206 with the file's first bytes and a Content-Range that says so
    wrong_range: bool = False
    status: int | None = None  # answer this instead, e.g. 404 or 503
    html: bool = False  # answer 200 and a web page
    content: bytes | None = None  # answer these bytes instead of the file's
    no_validator: bool = False  # neither ETag nor Last-Modified
    no_length: bool = False  # no Content-Length: the body ends where the connection does
    retry_after: str | None = None
    times: float = math.inf


@dataclass
class Server:
    """A local HTTP server over the folder `root`, with Range, If-Range and
    ETag, and with faults a file.
    """

    url: str  # without a slash at the end
    root: Path
    faults: dict[str, Fault] = field(default_factory=dict)
    # method, path, headers
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def fail(self, name: str, **fault) -> None:
        """Serve `name` (a path under root) with this fault from now on; without
        keywords, well again.
        """
        self.faults[name] = Fault(**fault)

    def asked(self, name: str) -> list[dict[str, str]]:
        """The headers of every GET of `name` so far."""
        return [
            headers for method, path, headers in self.requests if (method, path) == ("GET", name)
        ]


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            name = self.path.split("?")[0].lstrip("/")
            headers = {key.title(): value for key, value in self.headers.items()}
            server.requests.append((self.command, name, headers))
            fault = server.faults.get(name, Fault())
            if fault.times <= 0:
                fault = Fault()
            fault.times -= 1
            path = server.root / name
            if fault.status or not path.is_file():
                retry = {"Retry-After": fault.retry_after} if fault.retry_after else {}
                return self.reply(
                    fault.status or 404, PAGE, {"Content-Type": "text/html", **retry}, fault
                )
            if fault.html:
                return self.reply(200, PAGE, {"Content-Type": "text/html; charset=utf-8"}, fault)
            body = path.read_bytes() if fault.content is None else fault.content
            etag = f'"{hashlib.md5(body).hexdigest()}"'
            about = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
            if not fault.no_validator:
                about["ETag"] = etag
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", ""))
            unchanged = fault.ignore_if_range or headers.get("If-Range", etag) == etag
            if not asked or not unchanged or fault.ignore_range:
                return self.reply(200, body, about, fault)
            first, last = asked.groups()
            if first:
                start, stop = int(first), min(int(last) + 1 if last else len(body), len(body))
            else:
                start, stop = max(0, len(body) - int(last)), len(body)
            if start >= len(body):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"}, fault)
            if fault.wrong_range:
                start, stop = 0, stop - start
            about["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            return self.reply(206, body[start:stop], about, fault)

        def reply(self, status: int, body: bytes, headers: dict[str, str], fault: Fault):
            self.send_response(status)
            if fault.no_length:
                self.close_connection = True
                headers = {**headers, "Connection": "close"}
            else:
                headers = {**headers, "Content-Length": str(len(body))}
            for header in headers.items():
                self.send_header(*header)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body if fault.cut_after is None else body[: fault.cut_after])
            if fault.cut_after is not None:
                self.close_connection = True

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running `Server` over the empty folder tmp_path/served."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / "served"
    root.mkdir()
    served = Server("", root)
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    listening.daemon_threads = True
    served.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(
        target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    yield served
    listening.shutdown()
    listening.server_close()
    thread.join()
