"""HTTP/1 in a worker's parts: the strict reading itself is proven against real processes, in tests/hostile."""

import asyncio

import pytest
from haltwire_proxy import http1
from mitmproxy.proxy.layers import http as http_layers
from support.client import Wire, tls_tunnel
from support.strict import StrictOrigin
from support.world import INTERCEPTED, SECRET, basic

AUTH = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"


def test_mitmproxys_http_layer_makes_ours():
    """It looks them up by name: an update that renames them has to be noticed here."""
    assert http_layers.Http1Server is http1.Http1Server
    assert http_layers.Http1Client is http1.Http1Client


async def _open(world, origin):
    wire = await Wire.open(world.port)
    first = await wire.request("GET", f"http://{origin.host}/a", f"Host: {origin.host}", AUTH)
    assert first.status == 200
    return wire


async def test_a_refused_head_is_counted_and_the_client_is_let_read_its_answer(world):
    """A client that goes on sending must not lose the answer to a reset, nor keep us for ever."""
    async with StrictOrigin() as origin:
        wire = await _open(world, origin)
        await wire.send(b"GET /nonsense\r\n\r\n")
        answer = await wire.answer()
        assert (answer.status, answer.json()["error"]) == (400, "malformed_request")
        assert await wire.reader.read(1) == b""
        await wire.send(b"x" * 100_000)
        async with asyncio.timeout(http1.LINGER_S + 3):
            while world.enforcer.connections.count:
                await asyncio.sleep(0.05)
        (usage,) = world.enforcer.tallies.all()
        assert (usage.requests, usage.refused) == (1, 1)
        assert len(origin.requests) == 1


@pytest.mark.parametrize("size", [70_000, 200_000])
async def test_a_later_head_beyond_the_bound_is_named_as_such(world, size):
    async with StrictOrigin() as origin:
        wire = await _open(world, origin)
        await wire.send(b"GET / HTTP/1.1\r\nX: " + b"x" * size + b"\r\n\r\n")
        assert b'"headers_too_large"' in await wire.ended()


async def test_a_body_that_breaks_off_behind_an_answer_ends_in_silence(world):
    """A second answer to one request would be read as the next one's."""

    async with StrictOrigin() as origin:
        wire = await _open(world, origin)
        head = f"POST http://{origin.host}/b HTTP/1.1\r\nHost: {origin.host}\r\n{AUTH}\r\n"
        await wire.send(
            f"{head}Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        assert (await wire.answer()).status == 100
        await wire.send(b"nonsense\r\n")
        answer = await wire.answer()
        assert (answer.status, answer.json()["error"]) == (400, "malformed_request")
        assert await wire.ended(5) == b""


async def test_many_empty_lines_are_no_request(world, tls_origin):
    target = f"localhost:{tls_origin.port}"
    wire = await tls_tunnel(world.port, target, "acme.prod.reader", INTERCEPTED, world.ca_file)
    await wire.send(b"\r\n" * 50 + f"GET /echo HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    assert (await wire.answer()).status == 200
    assert len(tls_origin.requests) == 1
