"""A worker as a process of its own: it serves, and it ends when it is told or its parent is gone."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from aiohttp import web
from haltwire.wire import messages
from haltwire.wire.messages import Bye, Hello, Renew, Renewed, Settings, Snapshot
from support.client import Wire
from support.world import SECRET, TOKENS, basic

CHILD = """
import asyncio, json, sys
from haltwire_proxy.worker import WorkerConfig, serve
config = WorkerConfig(**json.loads(sys.stdin.readline()))
asyncio.run(serve(config, lambda: print("ready", flush=True)))
"""


@pytest.fixture
async def control(aiohttp_server):
    heard = []

    async def serve(request):
        link = web.WebSocketResponse()
        await link.prepare(request)
        async for message in link:
            said = messages.loads(message.data)
            heard.append(said)
            if isinstance(said, Hello):
                snapshot = Snapshot("e", 1, (), (), TOKENS, Settings(1000))
                await link.send_str(messages.dumps(snapshot))
            elif isinstance(said, Renew):
                await link.send_str(messages.dumps(Renewed(said.sent_at_boot, "e", 1, 1000)))
        return link

    app = web.Application()
    app.router.add_get("/v1/proxies/connect", serve)
    server = await aiohttp_server(app)
    server.heard = heard
    return server


@pytest.fixture
def settings():
    """What a worker is told besides what it needs."""
    return {}


@pytest.fixture
async def worker(control, data_dir, settings):
    async with started(control.port, data_dir, **settings) as process:
        yield process


@contextlib.asynccontextmanager
async def started(control_port, data_dir, **more):
    listener = socket.create_server(("127.0.0.1", 0))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-O",
        "-c",
        CHILD,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[listener.fileno()],
    )
    config = {
        "proxy_id": "w1",
        "listen_fd": listener.fileno(),
        "control_url": f"http://127.0.0.1:{control_port}",
        "proxy_key": "hwk_key",
        "data_dir": str(data_dir),
        "own_addresses": [["127.0.0.1", control_port]],
        "on_stale": "keep",
        **more,
    }
    process.stdin.write(json.dumps(config).encode() + b"\n")
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
    process.port = listener.getsockname()[1]
    listener.close()
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    process.stdin.close()


async def test_it_serves_through_the_inherited_socket(worker, origin):
    wire = await Wire.open(worker.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    answer = await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", auth)
    assert answer.status == 200
    wire.close()


async def test_the_control_server_is_not_reachable_through_it(worker, control):
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    for host in ("127.0.0.1", "localhost", "127.1", "0.0.0.0", "2130706433"):
        wire = await Wire.open(worker.port)
        answer = await wire.request("CONNECT", f"{host}:{control.port}", auth)
        assert (answer.status, answer.json()["error"]) == (403, "destination_denied")
        wire.close()


async def test_sigterm_cuts_what_is_left_and_says_bye(worker, control, origin):
    wire = await Wire.open(worker.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    assert (await wire.request("CONNECT", origin.host, auth)).status == 200
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(worker.wait(), 5) == 0
    assert await wire.ended() == b""
    assert any(isinstance(said, Bye) for said in control.heard)


async def test_what_it_does_beyond_its_lease_is_told_to_the_control_server(worker, control):
    (hello,) = (said for said in control.heard if isinstance(said, Hello))
    assert hello.on_stale == "keep"


async def test_it_ends_when_its_parent_is_gone(worker):
    worker.stdin.close()
    assert await asyncio.wait_for(worker.wait(), 5) == 0


async def test_a_killed_worker_resets_what_it_carried(worker, origin):
    wire = await Wire.open(worker.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    assert (await wire.request("CONNECT", origin.host, auth)).status == 200
    await wire.request("GET", "/hang", f"Host: {origin.host}", read=False)
    await asyncio.wait_for(origin.arrived.wait(), 2)
    os.kill(worker.pid, signal.SIGKILL)
    await asyncio.wait_for(origin.connections[0].ended.wait(), 2)
    await wire.ended()


async def test_without_a_control_server_it_is_ready_if_told_so_and_lets_nothing_through(
    data_dir, origin, unused_tcp_port
):
    options = {"wait_for_control": False, "on_stale": "refuse"}
    async with started(unused_tcp_port, data_dir, **options) as worker:
        wire = await Wire.open(worker.port)
        auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
        answer = await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", auth)
        assert (answer.status, answer.json()["error"]) == (503, "enforcement_unknown")
        assert origin.requests == []
        wire.close()


async def refused(port):
    async with asyncio.timeout(10):
        while True:
            try:
                (await Wire.open(port)).close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                pass  # it stood in the queue of the listener that was closed
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("settings", [{"drain_s": 60.0}])
async def test_what_is_under_way_goes_on_after_sigterm_until_a_second_one(worker, control, origin):
    wire = await Wire.open(worker.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    assert (await wire.request("CONNECT", origin.host, auth)).status == 200
    worker.send_signal(signal.SIGTERM)
    await refused(worker.port)
    answer = await wire.request("GET", "/echo", f"Host: {origin.host}")
    assert answer.status == 200
    assert not any(isinstance(said, Bye) for said in control.heard)
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(worker.wait(), 20) == 0
    assert await wire.ended() == b""
    assert any(isinstance(said, Bye) for said in control.heard)


@pytest.mark.parametrize("settings", [{"drain_s": 60.0}])
async def test_nobody_waits_for_anything_when_the_parent_is_gone(worker, origin):
    wire = await Wire.open(worker.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    assert (await wire.request("CONNECT", origin.host, auth)).status == 200
    worker.stdin.close()
    assert await asyncio.wait_for(worker.wait(), 20) == 0


def test_a_worker_starts_without_what_it_never_uses():
    """With mitmproxy's whole addons package 300 more modules were imported, and a start took 1.4 times the CPU."""
    code = "import sys, haltwire_proxy.worker; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert {"mitmproxy.addons.tlsconfig", "mitmproxy.addons.proxyserver"} <= loaded
    assert not loaded & {"flask", "ldap3", "mitmproxy.addons.onboarding"}


def test_inside_mitmdump_its_addons_stay_as_they_are():
    code = "import mitmproxy.addons as a, haltwire_proxy.gate, sys; assert sys.modules['mitmproxy.addons'] is a; assert a.default_addons()"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)
