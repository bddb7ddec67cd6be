"""Hold: everything stops where it stands, waits, and goes on as if nothing had been.

`HALTWIRE_TEST_HELD_S=60` holds as long as the acceptance of this feature asks for.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import ssl

import aiohttp
import pytest
from aiohttp import web
from support.operator import Operator
from support.system import System

HELD_S = float(os.environ.get("HALTWIRE_TEST_HELD_S", "3"))
STREAMS, REQUESTS = 50, 200
PIECES, PIECE = 150, 10_000
REQUEST_PIECES = 10
PAUSE_S = 0.02
"Between two pieces: a stream takes three seconds."
AGENT = "agent://acme/prod/mailer"


def pieces(seed: int, count: int = PIECES):
    source = random.Random(seed)
    return (source.randbytes(PIECE) for _ in range(count))


def digest(seed: int, count: int = PIECES) -> str:
    return hashlib.sha256(b"".join(pieces(seed, count))).hexdigest()


async def paced(seed: int, moved: asyncio.Event):
    for piece in pieces(seed):
        yield piece
        moved.set()
        await asyncio.sleep(PAUSE_S)


class Theatre:
    """An origin whose streams take their time, and which counts all that it gets."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self.requests = 0
        self.bytes_in = 0

    async def __aenter__(self):
        app = web.Application(client_max_size=0)
        app.router.add_get("/download/{seed}", self._download)
        app.router.add_post("/upload", self._upload)
        app.router.add_get("/socket", self._socket)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        self.url = (
            f"{'https' if self._context else 'http'}://localhost:{self._runner.addresses[0][1]}"
        )
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    async def _download(self, request):
        self.requests += 1
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in paced(int(request.match_info["seed"]), asyncio.Event()):
            await response.write(piece)
        return response

    async def _upload(self, request):
        self.requests += 1
        found = hashlib.sha256()
        async for piece in request.content.iter_any():
            self.bytes_in += len(piece)
            found.update(piece)
        return web.Response(text=found.hexdigest())

    async def _socket(self, request):
        self.requests += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            self.bytes_in += len(message.data)
            await socket.send_bytes(message.data)
        return socket


class Agent:
    """Streams and requests of one way through the proxy."""

    def __init__(self, session: aiohttp.ClientSession, url: str, proxy: str) -> None:
        self._session, self._url, self._proxy = session, url, proxy

    async def download(self, seed: int, moved: asyncio.Event) -> str:
        found = hashlib.sha256()
        async with self._session.get(f"{self._url}/download/{seed}", proxy=self._proxy) as answer:
            async for piece in answer.content.iter_any():
                found.update(piece)
                moved.set()
        return found.hexdigest()

    async def upload(self, seed: int, moved: asyncio.Event) -> str:
        return await self._post(paced(seed, moved))

    async def talk(self, seed: int, moved: asyncio.Event) -> str:
        found = hashlib.sha256()
        async with self._session.ws_connect(f"{self._url}/socket", proxy=self._proxy) as socket:
            for piece in pieces(seed):
                await socket.send_bytes(piece)
                found.update(await socket.receive_bytes())
                moved.set()
                await asyncio.sleep(PAUSE_S)
        return found.hexdigest()

    async def request(self, seed: int) -> str:
        return await self._post(b"".join(pieces(seed, REQUEST_PIECES)))

    async def _post(self, body) -> str:
        async with self._session.post(
            f"{self._url}/upload", data=body, proxy=self._proxy
        ) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.text()


@pytest.fixture
async def held(tmp_path, authority):
    options = ("--workers", "2", "--upstream-ca", str(authority.ca_file))
    async with System(tmp_path / "data", *options) as running:
        yield running


@pytest.mark.parametrize("tls", ["plain", "tunnel", "intercept"])
async def test_streams_and_requests_are_held_and_go_on_byte_for_byte(held, authority, tls):
    context = None if tls == "plain" else authority.server_context("localhost")
    proxy = await held.token(AGENT, None if tls == "plain" else tls)
    trusted = held.ca_file if tls == "intercept" else authority.ca_file
    connector = aiohttp.TCPConnector(
        limit=0, ssl=True if tls == "plain" else ssl.create_default_context(cafile=str(trusted))
    )
    timeout = aiohttp.ClientTimeout(total=HELD_S + 100)
    async with (
        Theatre(context) as origin,
        Operator(held) as operator,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as tasks,
    ):
        agent = Agent(session, origin.url, proxy)
        kinds = (agent.download, agent.upload, agent.talk)
        moved = [asyncio.Event() for _ in range(STREAMS)]
        streams = [tasks.create_task(kinds[n % 3](n, began)) for n, began in enumerate(moved)]
        for began in moved:
            await asyncio.wait_for(began.wait(), 30)
        receipt = (await operator.kill(AGENT, mode="hold")).body
        assert receipt["halted_at"] is not None
        assert sum(row["connections_held"] for row in receipt["instances"]) == STREAMS
        assert sum(proxy["connections_cut"] for proxy in receipt["proxies"]) == 0
        requests = [tasks.create_task(agent.request(n)) for n in range(REQUESTS)]
        await held_connections(operator, receipt["kill_id"], STREAMS + REQUESTS)
        before = origin.requests, origin.bytes_in
        await asyncio.sleep(HELD_S)
        assert (origin.requests, origin.bytes_in) == before
        assert not any(task.done() for task in (*streams, *requests))
        beat = await operator.call("POST", "/v1/mesh/heartbeat", {"agent_uri": AGENT})
        assert (beat["killed"], beat["held"]) == (False, True)
        resumed = await operator.resume(AGENT)
        assert resumed["lifted"] == [receipt["kill_id"]]
        for number, task in enumerate(streams):
            assert await task == digest(number), f"stream {number}"
        for number, task in enumerate(requests):
            assert await task == digest(number, REQUEST_PIECES), f"request {number}"
        assert origin.requests == STREAMS + REQUESTS


async def held_connections(operator: Operator, kill_id: str, count: int) -> None:
    """Until the kill's own receipt says that so many are held."""
    async with asyncio.timeout(30):
        while True:
            told = await operator.call("GET", f"/v1/mesh/kills/{kill_id}")
            rows = told["receipt"]["instances"]
            if sum(row["connections_held"] or 0 for row in rows) == count:
                return
            await asyncio.sleep(0.1)


async def test_a_hold_becomes_a_cut_at_its_limit(held, origin):
    proxy = await held.token(AGENT)
    async with Operator(held) as operator, aiohttp.ClientSession() as session:
        await operator.kill(AGENT, mode="hold", hold_limit_s=1.0)
        # The waiting one is cut; this client may ask once more by itself, and is then refused.
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"http://{origin.host}/", proxy=proxy) as answer:
                assert answer.status == 403
        async with session.get(f"http://{origin.host}/", proxy=proxy) as answer:
            assert answer.status == 403
        assert not origin.connections
        async with asyncio.timeout(10):
            while True:
                (order,) = (await operator.call("GET", "/v1/mesh/kills"))["kills"]
                assert order["mode"] == "cut"
                if order["confirmed"]:
                    break
                await asyncio.sleep(0.02)


async def test_an_order_is_lifted_when_it_expires(held, origin):
    proxy = await held.token(AGENT)
    async with Operator(held) as operator, aiohttp.ClientSession() as session:
        await operator.kill(AGENT, mode="hold", ttl_s=1.0)
        async with session.get(f"http://{origin.host}/", proxy=proxy) as answer:
            assert answer.status == 200
        assert (await operator.call("GET", "/v1/mesh/kills"))["kills"] == []
        events = await operator.call("GET", "/v1/mesh/events?event_type=kill.expired")
        assert [event["actor"] for event in events["events"]] == ["system:expiry"]
