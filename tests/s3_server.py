"""A real S3 server on loopback, moto's, with faults."""

import logging
import socket
import threading
from dataclasses import dataclass, field

import pytest

EXPIRED = (
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)


@dataclass
class Store:
    """Moto's server, and what goes wrong with the next requests of a method."""

    # method, fault and a part of the path; first come first
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self, threaded=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fail(self, method: str, fault: str, within: str = "") -> None:
        """The next request of a method to a path that holds `within` is answered by a fault: busy
        or cut; or, from then on, expired.
        """
        self.faults.append((method, fault, within))

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        fault = next((f for f in self.faults if f[0] == method and f[2] in path), None)
        if not fault:
            return self.app(environ, start_response)
        if fault[1] == "expired":
            return self._expired(method, start_response)
        self.faults.remove(fault)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault[1] == "busy":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return []
        if method == "PUT":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        # and the connection ends long before
        start_response("200 OK", [("Content-Length", "100000")])
        return [b"II"]

    @staticmethod
    def _expired(method: str, start_response):
        """As S3 says it: the answer to a HEAD has no body to give a reason."""
        if method == "HEAD":
            start_response("400 Bad Request", [])
            return []
        about = [("Content-Type", "application/xml"), ("Content-Length", str(len(EXPIRED)))]
        start_response("400 Bad Request", about)
        return [EXPIRED]

    @property
    def client(self):
        import boto3

        return boto3.client("s3")

    def keys(self, name: str) -> list[str]:
        return sorted(
            item["Key"] for item in self.client.list_objects_v2(Bucket=name).get("Contents", [])
        )


@pytest.fixture
def store(monkeypatch):
    """A running `Store` that this process's environment names, and its credentials."""
    pytest.importorskip("moto.server", reason="the test extra is not installed")
    pytest.importorskip("boto3", reason="the s3 extra is not installed")
    from pipeline import bucket

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for variable in (
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
    ):
        monkeypatch.delenv(variable, raising=False)
    store = Store()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server.port}")
    for name, value in {
        "ACCESS_KEY_ID": "me",
        "SECRET_ACCESS_KEY": "secret",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket._client.cache_clear()
    yield store
    bucket._client.cache_clear()
    store.server.shutdown()
