"""HTTP/2 as httpx and curl speak it: many streams on one connection are served at once, and end at once."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
from support.operator import Operator
from support.recorder import Recorder
from support.streams import SECRET_QUERY, in_flight_of
from support.system import CLEAN

EACH = 20
"Event streams on one connection; stock mitmproxy would serve five to an HTTP/1.1 origin."
KINDS = {
    "events": ("GET", "whole"),
    "download": ("GET", "whole"),
    "waiting": ("GET", "whole"),
    "upload": ("POST", "partly"),
}


class Agent:
    """Many requests at once over one HTTP/2 connection of httpx."""

    def __init__(self, origin: Recorder, proxy_url: str, trusted) -> None:
        self.client = httpx.AsyncClient(
            base_url=f"https://{origin.host}",
            http2=True,
            proxy=proxy_url,
            verify=ssl.create_default_context(cafile=str(trusted)),
            timeout=60,
            trust_env=False,
        )
        self.received: Counter[str] = Counter()
        "Pieces of each stream."
        self.requests: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Agent:
        answer = await self.client.get("/idle")
        assert (answer.text, answer.http_version) == ("ok", "HTTP/2")
        return self

    async def __aexit__(self, *_: object) -> None:
        for request in self.requests:
            request.cancel()
        await asyncio.gather(*self.requests, return_exceptions=True)
        await self.client.aclose()

    def start(self, count: int) -> None:
        """Begin so many of each kind."""
        loop = asyncio.get_running_loop()
        for number in range(count):
            for run in (self._events, self._download, self._wait, self._upload):
                self.requests.append(loop.create_task(run(number), name=f"{run} {number}"))

    async def moves(self) -> None:
        """Return when each stream has got another piece."""
        before = self.received.copy()
        async with asyncio.timeout(20):
            while len(self.received) < 2 * EACH or any(
                self.received[name] <= before[name] for name in self.received
            ):
                await asyncio.sleep(0.01)

    async def _events(self, number: int) -> None:
        await self._read(f"/events/{number}")

    async def _download(self, number: int) -> None:
        await self._read(f"/download/{number}")

    async def _read(self, path: str) -> None:
        async with self.client.stream("GET", path + SECRET_QUERY) as answer:
            async for _ in answer.aiter_bytes():
                self.received[path] += 1

    async def _wait(self, _: int) -> None:
        await self.client.get(f"/waiting{SECRET_QUERY}")

    async def _upload(self, _: int) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"more"
                await asyncio.sleep(0.2)

        await self.client.post(f"/upload{SECRET_QUERY}", content=pieces())


async def test_all_streams_of_a_connection_are_served_and_cut(shared_system, authority):
    system = shared_system
    victim, bystander = "agent://acme/httpx/mailer", "agent://acme/httpx/bystander"
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        origins, agents = {}, {}
        for name in (victim, bystander):
            origin = Recorder(authority.server_context("localhost"))
            origins[name] = await stack.enter_async_context(origin)
            url = await system.token(name, "intercept")
            agents[name] = await stack.enter_async_context(Agent(origin, url, system.ca_file))
            agents[name].start(EACH)
            await agents[name].moves()
            await origin.has(len(KINDS) * EACH, len(KINDS) * EACH + 1)
            async with asyncio.timeout(10):
                while sum(b"more" in arrival.plain for arrival in origin.arrivals) < EACH:
                    await asyncio.sleep(0.01)
        receipt = await operator.kill(victim)
        arrived = origins[victim].arrived()
        ends = await asyncio.wait_for(
            asyncio.gather(*agents[victim].requests, return_exceptions=True), 10
        )
        assert all(isinstance(end, httpx.TransportError) for end in ends), ends
        await origins[victim].all_ended()
        assert origins[victim].arrived() == arrived
        assert receipt.cut == 1
        expected = {
            (method, "localhost", kind, sent): EACH for kind, (method, sent) in KINDS.items()
        }
        assert _by_kind(in_flight_of(receipt.body)) == Counter(expected)
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            (await agents[victim].client.get("/idle")).raise_for_status()
        assert origins[victim].arrived() == arrived
        await agents[bystander].moves()
        assert len(origins[bystander].live) == len(KINDS) * EACH


def _by_kind(flights: Counter) -> Counter:
    kinds: Counter = Counter()
    for (method, host, path, sent), count in flights.items():
        kinds[method, host, path.split("/")[1], sent] += count
    return kinds


@pytest.mark.parametrize("tls", ["tunnel", "intercept"])
async def test_curl_is_cut_in_the_middle(shared_system, authority, tls):
    system = shared_system
    victim, bystander = f"agent://acme/{tls}/mailer", f"agent://acme/{tls}/bystander"
    trusted = system.ca_file if tls == "intercept" else authority.ca_file
    streams = 5 if tls == "intercept" else 1  # our origin speaks HTTP/1.1 where nobody translates
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        origins, curls = {}, {}
        for name in (victim, bystander):
            origin = Recorder(authority.server_context("localhost"))
            origins[name] = await stack.enter_async_context(origin)
            urls = [f"https://{origin.host}/events{SECRET_QUERY}"] * streams
            curls[name] = await asyncio.create_subprocess_exec(
                *("curl", "-sS", "-N", "--http2", "--parallel", "--cacert", str(trusted)),
                *("--proxy", await system.token(name, tls), "-w", "spoke %{http_version}\n"),
                *urls,
                env=CLEAN,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            await origin.has(streams, streams)
            await asyncio.wait_for(curls[name].stdout.readuntil(b"tick"), 10)
        receipt = await operator.kill(victim)
        arrived = origins[victim].arrived()
        said, _ = await asyncio.wait_for(curls[victim].communicate(), 10)
        assert curls[victim].returncode != 0
        version = b"spoke 2" if tls == "intercept" else b"spoke 1.1"
        assert said.count(version) == streams, said
        await origins[victim].all_ended()
        assert origins[victim].arrived() == arrived
        assert sum(in_flight_of(receipt.body).values()) == streams
        await asyncio.wait_for(curls[bystander].stdout.readuntil(b"tick"), 10)
        await asyncio.wait_for(curls[bystander].stdout.readuntil(b"tick"), 10)
        assert len(origins[bystander].live) == streams
        curls[bystander].kill()
        await curls[bystander].communicate()
