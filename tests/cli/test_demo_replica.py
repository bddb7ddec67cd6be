"""The replica is an ordinary program: standard library only, and it never gives a message up or a new key."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from haltwire_cli import demo_replica

SOURCE = Path(demo_replica.__file__)


def test_it_imports_the_standard_library_alone():
    tree = ast.parse(SOURCE.read_text())
    names = {
        name.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert names <= sys.stdlib_module_names


@contextmanager
def listening(answers: list[tuple[int, bytes]]):
    """A plain server that is proxy and origin in one: gives these answers first, then 202; yields what it got."""
    got: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers.get("Idempotency-Key"), body))
            progress = "haltwire.internal" in self.path
            status, said = (202, b"{}") if progress or not answers else answers.pop(0)
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def replica(proxy: str, *arguments: object):
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(SOURCE), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"http_proxy": proxy},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


KILLED = (403, b'{"error": "agent_killed"}')


def test_it_sends_all_and_tells_how_far_it_is():
    with (
        listening([]) as (proxy, got),
        replica(proxy, "i-1", "http://mail.test/send", 5, 2, 0, 0) as it,
    ):
        assert it.stdout.read().split("\n")[-2] == '{"event": "done", "detail": ""}'
        assert it.wait() == 0
    sent = [(key, json.loads(body)["message"]) for path, key, body in got if "mail" in path]
    assert sent == [(f"i-1-00000{n}", f"i-1/{n}") for n in range(1, 6)]
    told = [json.loads(body)["metadata"] for path, _, body in got if "heartbeat" in path]
    assert [progress["sent"] for progress in told] == [2, 4, 5]
    assert told[-1] == {"batch": 3, "sent": 5, "total": 5, "unit": "emails"}


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (KILLED, "agent_killed"),
        ((503, b"not json"), "status 503"),
        ((0, b""), "Remote end closed connection without response"),
    ],
    ids=["killed", "unknown", "cut"],
)
def test_what_is_refused_is_sent_again_under_the_same_key(answer, detail):
    with (
        listening([answer]) as (proxy, got),
        replica(proxy, "i-1", "http://mail.test/send", 1, 1, 0, 0) as it,
    ):
        said = [json.loads(line) for line in it.stdout]
    assert said[0] == {"event": "refused", "detail": detail}
    assert [key for path, key, _ in got if "mail" in path] == ["i-1-000001"] * 2


def test_what_cannot_be_helped_by_trying_again_ends_it():
    with (
        listening([(400, b"")]) as (proxy, _),
        replica(proxy, "i-1", "http://mail.test/send", 1, 1, 0, 0) as it,
    ):
        assert it.wait() == 1
        assert "HTTP Error 400" in it.stderr.read()


def test_it_ends_with_its_input():
    with (
        listening([KILLED] * 1000) as (proxy, _),
        replica(proxy, "i-1", "http://mail.test/send", 1, 1, 0, 0) as it,
    ):
        it.stdout.readline()
        it.stdin.close()
        assert it.wait(5) == 3
        it.stdin = None


def test_one_message_is_large():
    with (
        listening([]) as (proxy, got),
        replica(proxy, "i-1", "http://mail.test/send", 2, 2, 2, 0) as it,
    ):
        assert it.wait() == 0
    sizes = [len(body) for path, _, body in got if "mail" in path]
    assert sizes[0] < 200
    assert sizes[1] > demo_replica.LARGE_BYTES
