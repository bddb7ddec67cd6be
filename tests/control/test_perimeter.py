"""The edge before the routes: every answer the same headers, no bytes quoted, room for whoever comes next."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

import pytest
from haltwire_control import perimeter as module
from haltwire_control.perimeter import SECURITY_HEADERS

SECRET = "hwk_" + "s" * 43


async def exchange(control, request: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(control.url).port)
    writer.write(request)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    writer.close()
    return int(head[0].split()[1]), headers, body


UNREADABLE = {
    "no HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 400),
    "a control character": (f"GET / HTTP/1.1\r\nx: {SECRET}\x01\r\n\r\n".encode(), 400),
    "a long line": (f"GET /{SECRET * 300} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 431),
    "a long header": (f"GET / HTTP/1.1\r\nx: {SECRET * 300}\r\n\r\n".encode(), 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"x: 1\r\n" * 500 + b"\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "length and chunks": (
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize(("request_", "status"), UNREADABLE.values(), ids=UNREADABLE)
async def test_what_is_no_request(control, caplog, request_, status):
    caplog.set_level(logging.DEBUG)
    found, headers, body = await exchange(control, request_)
    assert found == status
    for name, value in {**SECURITY_HEADERS, "Server": "haltwire"}.items():
        assert headers[name.lower()] == value.lower()
    assert headers["content-type"].startswith("application/json")
    assert headers["connection"] == "close"
    assert SECRET.encode() not in body
    assert SECRET not in caplog.text


async def test_an_unknown_expectation_has_the_headers_too(control):
    head = b"POST /v1/mesh/kill HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\n\r\n"
    status, headers, _ = await exchange(control, head)
    assert status == 417
    assert headers["x-frame-options"] == "deny"
    assert headers["server"] == "haltwire"


async def test_the_quietest_stranger_makes_room_and_whoever_showed_a_key_does_not(
    control, worker, monkeypatch
):
    monkeypatch.setattr(module, "STRANGERS_MOST", 5)
    await control.call("GET", "/v1/mesh/kills")  # this client's connection is trusted from here on
    port = urlsplit(control.url).port
    strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    for reader, _ in strangers[:15]:
        assert await asyncio.wait_for(reader.read(), 5) == b""
    reader, writer = strangers[-1]
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    assert (await worker.renew()).revision == worker.revision, "the proxy's link lives"
    assert (await control.call("GET", "/v1/mesh/kills")).status == 200
    for _, writer in strangers:
        writer.close()


async def test_an_agents_token_gives_no_place(control, monkeypatch):
    """A fleet, or one agent with many connections, must not keep an operator out."""
    secret = await control.token("agent://acme/prod/mailer")
    monkeypatch.setattr(module, "STRANGERS_MOST", 3)
    port = urlsplit(control.url).port
    beat = f"POST /v1/mesh/heartbeat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n"
    first, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(beat.encode())
    assert (await first.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
    await asyncio.wait_for(first.read(), 5)
    for _, one in [*others, (first, writer)]:
        one.close()
