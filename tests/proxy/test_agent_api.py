"""haltwire.internal through the proxy: answered for killed agents too, and only what agents may call."""

import json

import pytest
from aiohttp import web
from support.client import Wire, tunnel
from support.world import INTERCEPTED, SECRET, World, basic

AUTH = f"Proxy-Authorization: {basic('acme.prod.mailer~i-1', SECRET)}"
HEARTBEAT = "http://haltwire.internal/v1/mesh/heartbeat"
BODY = json.dumps({"metadata": {"batch": 22}}).encode()


@pytest.fixture
async def control(aiohttp_server):
    calls = []

    async def heartbeat(request: web.Request) -> web.Response:
        calls.append((dict(request.headers), await request.json()))
        return web.json_response({"ok": True, "killed": False})

    async def anything(request: web.Request) -> web.Response:
        calls.append((dict(request.headers), request.path))
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_post("/v1/mesh/heartbeat", heartbeat)
    app.router.add_route("*", "/{rest:.*}", anything)
    server = await aiohttp_server(app)
    server.calls = calls
    return server


@pytest.fixture
async def agent_world(data_dir, authority, control):
    async with World(data_dir, authority.ca_file, str(control.make_url("/"))) as running:
        yield running


async def _call(world, method, target, *headers, body=b""):
    wire = await Wire.open(world.port)
    answer = await wire.request(method, target, "Host: haltwire.internal", *headers, body=body)
    wire.close()
    return answer


@pytest.mark.parametrize("killed", [False, True])
async def test_a_heartbeat_is_relayed_as_the_agent_itself(agent_world, control, killed):
    if killed:
        agent_world.kill("agent://acme/**")
    answer = await _call(agent_world, "POST", HEARTBEAT, AUTH, body=BODY)
    assert (answer.status, answer.json()["ok"]) == (200, True)
    ((headers, body),) = control.calls
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert headers["X-Agent-URI"] == "agent://acme/prod/mailer"
    assert headers["X-Agent-Instance"] == "i-1"
    assert "Proxy-Authorization" not in headers
    assert body == {"metadata": {"batch": 22}}


async def test_it_answers_without_a_lease(agent_world):
    agent_world.lose_lease()
    assert (await _call(agent_world, "POST", HEARTBEAT, AUTH, body=BODY)).status == 200


async def test_an_unnamed_instance_is_its_address(agent_world, control):
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    await _call(agent_world, "POST", HEARTBEAT, auth, body=BODY)
    assert control.calls[0][0]["X-Agent-Instance"] == "ip:127.0.0.1"


async def test_it_is_there_by_connect_too(agent_world, control):
    wire = await tunnel(agent_world.port, "haltwire.internal:80", "acme.prod.reader", INTERCEPTED)
    answer = await wire.request("POST", "/v1/mesh/heartbeat", "Host: haltwire.internal", body=BODY)
    assert answer.status == 200
    assert await wire.ended() == b""
    assert control.calls[0][0]["X-Agent-URI"] == "agent://acme/prod/reader"


async def test_it_is_there_on_a_connection_that_carries_other_requests(
    agent_world, control, origin
):
    wire = await Wire.open(agent_world.port)
    assert (
        await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", AUTH)
    ).status == 200
    answer = await wire.request("POST", HEARTBEAT, "Host: haltwire.internal", AUTH, body=BODY)
    assert (answer.status, answer.json()["ok"]) == (200, True)
    assert (
        await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", AUTH)
    ).status == 200
    wire.close()
    assert control.calls[0][0]["X-Agent-Instance"] == "i-1"


async def test_the_authority_can_be_fetched(agent_world):
    answer = await _call(agent_world, "GET", "http://haltwire.internal/ca.pem", AUTH)
    assert answer.body == agent_world.ca_file.read_bytes()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/mesh/resume"),
        ("POST", "/v1/mesh/agents/acme.prod.mailer/resume"),
        ("GET", "/v1/tokens"),
        ("POST", "/v1/tokens"),
        ("GET", "/v1/mesh/heartbeat/../../tokens"),
        ("GET", "/v1/proxies/connect"),
        ("DELETE", "/v1/mesh/heartbeat"),
    ],
)
async def test_operator_calls_do_not_exist(agent_world, control, method, path):
    answer = await _call(agent_world, method, f"http://haltwire.internal{path}", AUTH, body=b"{}")
    assert (answer.status, answer.json()["error"]) == (404, "not_found")
    assert control.calls == []


async def test_a_second_call_behind_the_first_is_not_served(agent_world, control):
    wire = await Wire.open(agent_world.port)
    call = f"POST {HEARTBEAT} HTTP/1.1\r\nHost: haltwire.internal\r\n{AUTH}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    await wire.send((call + BODY) * 2)
    assert (await wire.answer()).status == 200
    assert await wire.ended() == b""
    assert len(control.calls) == 1


async def test_a_large_body_is_refused(agent_world, control):
    wire = await Wire.open(agent_world.port)
    await wire.send(
        f"POST {HEARTBEAT} HTTP/1.1\r\nHost: haltwire.internal\r\n{AUTH}\r\nContent-Length: 3000000\r\n\r\n".encode()
    )
    wire.writer.write(b"x" * 3_000_000)
    assert (await wire.answer()).status == 413
    await wire.ended()
    assert control.calls == []


async def test_without_a_control_server_it_says_so(world):
    answer = await _call(world, "POST", HEARTBEAT, AUTH, body=BODY)
    assert (answer.status, answer.json()["error"]) == (503, "control_unreachable")


async def test_it_needs_credentials(agent_world, control):
    assert (await _call(agent_world, "POST", HEARTBEAT, body=b"")).status == 407
    assert control.calls == []
