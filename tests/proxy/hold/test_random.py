"""Holds at any moment: in the middle of dials, handshakes, heads, bodies. Every request still gets its answer, whole."""

import asyncio
import hashlib
import random
import ssl
import time

import aiohttp
import httpx
import pytest
from aiohttp import web
from support.held import AGENT, READER

SECONDS = 3.0
SIZES = (0, 10, 5000, 300_000)
PAUSES = (0, 0, 0.001, 0.01, 0.05)


async def _echo(request):
    """Answers with what it reads while it reads it."""
    response = web.StreamResponse()
    await response.prepare(request)
    async for piece in request.content.iter_any():
        await response.write(piece)
    return response


class _Agent:
    def __init__(self, world, url):
        self.world, self.url, self.random = world, url, random.Random(7)
        self.ends_at = time.monotonic() + SECONDS
        self.answered = 0
        self.trust = ssl.create_default_context(cafile=str(world.ca_file))

    async def over_http_1(self, session):
        while time.monotonic() < self.ends_at:
            body = self.random.randbytes(self.random.choice(SIZES))
            proxy = self.world.proxy_url(*READER)
            async with session.post(self.url, data=body, proxy=proxy, ssl=self.trust) as answer:
                self.check(answer.status, body, await answer.read())

    async def over_http_2(self, client):
        while time.monotonic() < self.ends_at:
            body = self.random.randbytes(self.random.choice(SIZES))
            answer = await client.post(self.url, content=body)
            self.check(answer.status_code, body, answer.content)

    def check(self, status, sent, got):
        assert status == 200, got
        assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
        self.answered += 1

    async def hold_now_and_then(self):
        while time.monotonic() < self.ends_at:
            await asyncio.sleep(self.random.choice(PAUSES))
            hold = self.world.hold(AGENT)
            await asyncio.sleep(self.random.choice(PAUSES))
            self.world.resume(hold.ack.kills[0])


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("budget_s", [0.005, 2e-5], ids=["alone", "always waiting its turn"])
async def test_holds_at_any_moment_change_nothing(world, authority, monkeypatch, scheme, budget_s):
    monkeypatch.setattr("haltwire_proxy.turnstile.BUDGET_S", budget_s)
    app = web.Application(client_max_size=0)
    app.router.add_post("/", _echo)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = authority.server_context("localhost") if scheme == "https" else None
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    agent = _Agent(world, f"{scheme}://localhost:{runner.addresses[0][1]}/")
    trust = ssl.create_default_context(cafile=str(world.ca_file))  # httpx changes it
    proxy = world.proxy_url(*READER)
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
        httpx.AsyncClient(http2=True, proxy=proxy, verify=trust, timeout=30) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(6):
            tasks.create_task(agent.over_http_1(session))
            tasks.create_task(agent.over_http_2(client))
        tasks.create_task(agent.hold_now_and_then())
    await runner.cleanup()
    assert agent.answered
