"""A control server that answers what a test tells it to, on a real socket."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pytest
from click.testing import CliRunner, Result
from haltwire_cli.main import cli
from support.receipts import agent

KEY = "hwk_" + "k" * 43


class FakeControl:
    """Answers by (method, path); remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, object]] = {}
        self.calls: list[tuple[str, str, dict, object]] = []
        self.keys: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                fake.calls.append((self.command, parts.path, dict(parse_qsl(parts.query)), body))
                fake.keys.append(self.headers.get("Authorization", ""))
                status, document = fake.answers.get(
                    (self.command, parts.path),
                    (404, {"error": {"code": "not_found", "message": "there is no such thing"}}),
                )
                if callable(document):
                    document = document(dict(parse_qsl(parts.query)), body)
                payload = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *args) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def will(self, method: str, path: str, document: object, status: int = 200) -> None:
        self.answers[method, path] = (status, document)

    def knows(self, *agents: str) -> None:
        self.will("GET", "/v1/mesh/agents", {"ok": True, "agents": [agent(a) for a in agents]})

    @property
    def last(self) -> tuple[str, str, dict, object]:
        return self.calls[-1]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def control():
    fake = FakeControl()
    yield fake
    fake.close()


@pytest.fixture
def haltwire(control, tmp_path, monkeypatch):
    """Runs a command against the fake control server."""
    for name in ("HALTWIRE_DATA_DIR", "HALTWIRE_URL", "HALTWIRE_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str, env: dict | None = None) -> Result:
        given = {
            "HALTWIRE_URL": control.url,
            "HALTWIRE_API_KEY": KEY,
            "HALTWIRE_DATA_DIR": str(tmp_path / "data"),
        }
        return CliRunner().invoke(
            cli, args, env=given if env is None else env, prog_name="haltwire"
        )

    return run
