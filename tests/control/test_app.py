"""The control server as a process: how it starts, stops, and what survives its death."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlsplit

import aiohttp
import pytest
from haltwire_control import app
from haltwire_control.app import ControlConfig
from haltwire_control.perimeter import SECURITY_HEADERS
from haltwire_control.store import StoreLockedError
from support.certificates import write_pair
from support.control import PROXY_KEY, running_control
from support.control_process import ControlProcess

MAILER = "agent://acme/prod/mailer"


@contextmanager
def listening():
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener


def call(
    listener, data_dir, method: str, path: str, body: dict | None = None, once: str | None = None
) -> dict:
    host, port = listener.getsockname()
    key = (data_dir / "admin.key").read_text().strip()
    request = urllib.request.Request(
        f"http://{host}:{port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", **({"Idempotency-Key": once} if once else {})},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read())


@pytest.fixture
def started(tmp_path):
    """Starts control servers on one data directory and socket; none outlives the test."""
    processes = []
    with listening() as listener:

        def start(loop: str = "uvloop") -> ControlProcess:
            process = ControlProcess(tmp_path / "data", listener.fileno(), loop)
            processes.append(process)
            return process

        start.listener, start.data_dir = listener, tmp_path / "data"
        yield start
    for process in processes:
        if process.process.poll() is None:
            process.kill()


def ready(start, loop: str = "uvloop") -> ControlProcess:
    process = start(loop)
    process.wait_ready()
    return process


def test_a_kill_survives_the_death_of_the_server_right_after_its_answer(started):
    server = ready(started)
    body = {"selector": MAILER, "wait_s": 0, "reason": "why"}
    receipts = []
    for number in range(3):
        receipts.append(
            call(
                started.listener,
                started.data_dir,
                "POST",
                "/v1/mesh/kill",
                body | {"instance": f"i-{number}"},
            )
        )
        server.kill()
        server = ready(started)
    kills = call(started.listener, started.data_dir, "GET", "/v1/mesh/kills")["kills"]
    assert [k["kill_id"] for k in kills] == [r["kill_id"] for r in reversed(receipts)]
    assert all(k["reason"] == "why" for k in kills)
    verified = call(started.listener, started.data_dir, "GET", "/v1/mesh/audit/verify")
    assert verified["ok"] is True


def test_a_kill_whose_answer_died_with_the_server_is_asked_for_again_and_done_once(started):
    server = ready(started)
    body = {"selector": MAILER, "wait_s": 0}
    first = call(started.listener, started.data_dir, "POST", "/v1/mesh/kill", body, "once")
    server.kill()  # as good as before the answer: it is in the same transaction as the order
    server = ready(started)
    call(started.listener, started.data_dir, "POST", "/v1/mesh/resume", body)
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(started.listener, started.data_dir, "POST", "/v1/mesh/kill", body, "once")
    with refused.value as again:
        assert (again.code, first["kill_id"] in again.read().decode()) == (409, True)
    assert call(started.listener, started.data_dir, "GET", "/v1/mesh/kills")["kills"] == []


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigterm_stops_it(started, loop):
    server = ready(started, loop)
    assert call(started.listener, started.data_dir, "GET", "/healthz") == {"ok": True}
    server.process.send_signal(signal.SIGTERM)
    code, said = server.end(5)
    assert (code, said) == (0, "")


def test_the_end_of_its_stdin_stops_it_within_a_second(started):
    server = ready(started)
    began = time.monotonic()
    server.process.stdin.close()
    assert server.process.wait(5) == 0
    assert time.monotonic() - began < 1.5
    server.process.stdin = open("/dev/null", "wb")  # noqa: SIM115, PTH123 - closed by end()
    server.end()


def test_a_second_one_on_the_same_directory_says_why_it_cannot(started):
    ready(started)
    second = started()
    code, said = second.end(10)
    assert code == 1
    assert "another haltwire" in said


async def test_what_is_kept_is_private(control):
    await control.kill(MAILER, wait_s=0)
    kept = {p.name: p.stat().st_mode & 0o777 for p in control.data_dir.iterdir()}
    assert {"haltwire.db", "haltwire.db-wal", "ledger.db", "admin.key"} <= set(kept)
    assert set(kept.values()) == {0o600}


async def test_the_directory_is_free_again_after_the_context(tmp_path):
    async with running_control(tmp_path):
        with pytest.raises(StoreLockedError):
            async with running_control(tmp_path):
                pass
    async with running_control(tmp_path) as control:
        assert (await control.call("GET", "/healthz")).status == 200


ANYWHERE = {
    "an answer": ("GET", "/healthz", 200),
    "no route": ("GET", "/nothing", 404),
    "no key": ("GET", "/v1/keys", 401),
    "an upgrade that is none": ("GET", "/v1/proxies/connect", 400),
    "a stream": ("GET", "/v1/mesh/audit/export", 200),
}


@pytest.mark.parametrize(("method", "path", "status"), ANYWHERE.values(), ids=ANYWHERE)
async def test_every_answer_has_the_security_headers(control, method, path, status):
    key = None if status == 401 else PROXY_KEY if status == 400 else ""
    reply = await control.call(method, path, key=key)
    assert reply.status == status
    for name, value in SECURITY_HEADERS.items():
        assert reply.headers[name] == value


async def test_a_fault_of_our_own_tells_nothing(control, monkeypatch, caplog):
    async def fail():
        raise KeyError("a secret thing")

    monkeypatch.setattr(control.service.store, "verify", fail)
    reply = await control.call("GET", "/v1/mesh/audit/verify")
    assert (reply.status, reply.body["error"]["code"]) == (500, "internal_error")
    assert "secret thing" not in str(reply.body)
    assert "secret thing" in caplog.text


def test_a_config_does_not_show_its_key():
    assert "hwk_" not in repr(ControlConfig("x", 3, local_proxy_key=PROXY_KEY))


async def test_with_a_certificate_it_speaks_tls_and_nothing_else(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, "localhost"))
    async with running_control(tmp_path / "data", tls=context) as control:
        port = urlsplit(control.url).port
        trusted = ssl.create_default_context(cafile=str(tmp_path / "localhost.crt"))
        async with control.session.get(f"https://localhost:{port}/healthz", ssl=trusted) as answer:
            assert await answer.json() == {"ok": True}
        with pytest.raises(aiohttp.ClientError):
            await control.session.get(f"http://localhost:{port}/healthz")


async def test_a_handshake_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "HANDSHAKE_S", 0.05)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, "localhost"))
    async with running_control(tmp_path / "data", tls=context) as control:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(control.url).port)
        writer.write(b"\x16\x03\x01\x02\x00\x01")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
