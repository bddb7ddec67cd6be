"""The hooks: identity on every request, nothing of ours upstream, and a fault never lets through."""

import asyncio
import ssl

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from haltwire_proxy import addon, one_authority
from mitmproxy import http
from mitmproxy.test import tflow
from support.client import Wire, tls_tunnel, tunnel
from support.origin import Origin
from support.world import BYSTANDER, INTERCEPTED, SECRET, basic

AUTH = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
OURS = (
    "Proxy-Connection: keep-alive",
    "X-Agent-Instance: i-1",
    "X-Agent-Trace: 7",
    "X_Agent_URI: agent://a/b",
    "X-Other: kept",
)


async def _plain(world, origin, *headers):
    wire = await Wire.open(world.port)
    answer = await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", *headers)
    wire.close()
    return answer


async def test_nothing_of_ours_reaches_a_plain_origin(world, origin):
    answer = await _plain(world, origin, AUTH, *OURS)
    assert answer.json()["headers"] == {"host": origin.host, "x-other": "kept"}


async def test_nothing_of_ours_reaches_an_intercepted_origin(world, tls_origin):
    target = f"localhost:{tls_origin.port}"
    wire = await tls_tunnel(world.port, target, "acme.prod.reader~i-1", INTERCEPTED, world.ca_file)
    inner = f"Proxy-Authorization: {basic('acme.prod.reader~i-1', INTERCEPTED)}"
    answer = await wire.request("GET", "/echo", f"Host: {target}", inner, *OURS)
    wire.close()
    assert answer.json()["headers"] == {"host": target, "x-other": "kept"}


@pytest.mark.parametrize(
    ("name", "header", "status", "code"),
    [
        (
            "another secret",
            f"Proxy-Authorization: {basic('acme.prod.bystander', BYSTANDER)}",
            421,
            "identity_switched",
        ),
        ("another instance", f"{AUTH}\r\nX-Agent-Instance: i-9", 421, "identity_switched"),
        ("no credentials", "X-Nothing: 1", 407, "proxy_credentials_required"),
    ],
)
async def test_a_later_request_on_the_connection_must_be_the_same_caller(
    world, origin, name, header, status, code
):
    wire = await Wire.open(world.port)
    target = f"{origin.url}/echo"
    assert (await wire.request("GET", target, f"Host: {origin.host}", AUTH)).status == 200
    answer = await wire.request("GET", target, f"Host: {origin.host}", *header.split("\r\n"))
    assert (answer.status, answer.json()["error"]) == (status, code)
    assert await wire.ended() == b""
    assert len(origin.requests) == 1


@pytest.mark.parametrize("host", ["other.test", "localhost:notaport", "a@b"])
async def test_host_and_connect_target_must_agree(world, tls_origin, host):
    target = f"localhost:{tls_origin.port}"
    wire = await tls_tunnel(world.port, target, "acme.prod.reader", INTERCEPTED, world.ca_file)
    answer = await wire.request("GET", "/echo", f"Host: {host}")
    wire.close()
    assert (answer.status, answer.json()["error"]) == (421, "authority_mismatch")
    assert tls_origin.requests == []


async def test_a_connect_inside_a_connection_is_refused(world, origin):
    wire = await Wire.open(world.port)
    await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", AUTH)
    nested = await wire.request("CONNECT", origin.host, f"Host: {origin.host}", AUTH)
    assert nested.status == 400
    wire.close()
    assert len(origin.connections) == 1


async def test_the_way_around_us_by_http_3_is_not_advertised(world, authority):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\nContent-Length: 0\r\n\r\n')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(
        serve, "127.0.0.1", 0, ssl=authority.server_context("localhost")
    )
    target = f"localhost:{server.sockets[0].getsockname()[1]}"
    wire = await tls_tunnel(world.port, target, "acme.prod.reader", INTERCEPTED, world.ca_file)
    answer = await wire.request("GET", "/", f"Host: {target}")
    wire.close()
    server.close()
    assert answer.status == 200
    assert "alt-svc" not in answer.headers


@pytest.mark.parametrize(
    ("module", "step"),
    [(addon, "agrees"), (addon, "another_sni"), (one_authority, "_judge")],
)
async def test_a_fault_in_any_step_refuses(world, tls_origin, monkeypatch, caplog, module, step):
    def fail(*_, **__):
        raise RuntimeError("injected")

    monkeypatch.setattr(module, step, fail)
    target = f"localhost:{tls_origin.port}"
    wire = await tls_tunnel(world.port, target, "acme.prod.reader", INTERCEPTED, world.ca_file)
    answer = await wire.request("GET", "/echo", f"Host: {target}")
    wire.close()
    assert (answer.status, answer.json()["error"]) == (503, "enforcement_failed")
    assert tls_origin.connections == []


@pytest.mark.parametrize("hook", ["request", "responseheaders", "response"])
async def test_a_hook_that_raises_later_cuts_the_connection(
    world, tls_origin, monkeypatch, caplog, hook
):
    def fail(*_, **__):
        raise RuntimeError("injected")

    monkeypatch.setattr(world.inspector.addon, hook, fail)
    target = f"localhost:{tls_origin.port}"
    wire = await tls_tunnel(world.port, target, "acme.prod.reader", INTERCEPTED, world.ca_file)
    await wire.request("POST", "/echo", f"Host: {target}", body=b"x", read=False)
    await wire.ended()
    assert world.enforcer.connections.count == 0


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("http://HALTWIRE.Internal/ca.pem", 200, None),
        ("http://haltwire.internal./ca.pem", 200, None),
        ("http://haltwire.internal:80/ca.pem", 200, None),
        ("http://haltwire.internal:8080/ca.pem", 403, "destination_denied"),
        ("https://haltwire.internal/ca.pem", 400, "malformed_request"),
        ("http://haltwire.internal/v1/mesh/kill", 404, "not_found"),
    ],
)
async def test_every_spelling_of_haltwire_internal_is_it_on_a_later_request_too(
    world, origin, monkeypatch, target, status, code
):
    """It is never resolved: some name server would learn of it, or answer."""
    wire = await Wire.open(world.port)
    await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", AUTH)

    async def dial(*_):
        raise AssertionError("dialled")

    monkeypatch.setattr(world.dialer, "dial", dial)
    answer = await wire.request("GET", target, "Host: haltwire.internal", AUTH)
    wire.close()
    assert answer.status == status
    if code is not None:
        assert answer.json()["error"] == code


async def test_the_tls_name_must_be_that_of_connect(world, authority):
    """mitmproxy would name it to the upstream and take its certificate for it."""
    async with Origin(authority.server_context("other.test", "localhost")) as origin:
        target = f"localhost:{origin.port}"
        wire = await tunnel(world.port, target, "acme.prod.reader", INTERCEPTED)
        context = ssl.create_default_context(cafile=str(world.ca_file))
        await wire.start_tls(context, "other.test")
        answer = await wire.request("GET", "/echo", f"Host: {target}")
        wire.close()
        assert (answer.status, answer.json()["error"]) == (421, "authority_mismatch")
        assert origin.connections == []


async def test_an_origin_may_be_an_ipv6_address(world):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "::1", 0)
    target = f"[::1]:{server.sockets[0].getsockname()[1]}"
    wire = await Wire.open(world.port)
    answer = await wire.request("GET", f"http://{target}/", f"Host: {target}", AUTH)
    wire.close()
    server.close()
    assert answer.status == 200


def test_nothing_of_ours_is_in_the_trailers(world):
    flow = tflow.tflow()
    flow.request.trailers = http.Headers([(b"x-agent-uri", b"agent://a/b"), (b"x-sum", b"1")])
    world.inspector.addon.request(flow)
    assert flow.request.trailers.fields == ((b"x-sum", b"1"),)


def test_what_passes_behind_an_upgrade_is_not_kept(world):
    flow = tflow.ttcpflow()
    assert flow.messages
    world.inspector.addon.tcp_message(flow)
    assert flow.messages == []


async def test_a_live_websocket_says_what_passed_and_not_that_it_was_all(world, authority):
    """Its request is whole, but what the agent says in it goes on."""

    async def serve(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/ws", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server_context("localhost"))
    await site.start()
    url = f"wss://localhost:{runner.addresses[0][1]}/ws"
    proxy = world.proxy_url("acme.prod.reader", INTERCEPTED)
    trust = ssl.create_default_context(cafile=str(world.ca_file))
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, proxy=proxy, ssl=trust) as socket,
    ):
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"
        enforced = world.kill("agent://acme/prod/reader")
        assert (await socket.receive()).type in (WSMsgType.CLOSED, WSMsgType.ERROR)
    await runner.cleanup()
    (flight,) = enforced.reports()[0].instances[0].in_flight
    assert (flight.path, flight.sent, flight.bytes_up_acked) == ("/ws", "unknown", None)
    assert (flight.bytes_up, flight.bytes_down) == (5, 5)
