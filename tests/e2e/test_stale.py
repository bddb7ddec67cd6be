"""A control server that says nothing, a worker that sleeps: nothing passes, and what lived goes on or is cut.

The supervisor stands still meanwhile: what it does about a process that hangs is told elsewhere.
"""

import asyncio
import contextlib
import ssl
import time
from urllib.parse import urlsplit

import aiohttp
import pytest
from support.client import Wire, tunnel
from support.operator import Operator
from support.recorder import Recorder
from support.scripted import until
from support.stopping import children, stopped, unsupervised
from support.system import System
from support.theatre import Agent, Theatre, digest
from support.world import basic

AGENT = "agent://acme/prod/mailer"
LEASE_S = 1.0
LATE_S = 1.0
"What a loaded machine may add to when a test notices something."
ATTEMPTS = 1000
WAYS = ("plain", "tunnel", "intercept")


def options(authority, *more):
    return ("--workers", "2", "--lease", "1s", "--upstream-ca", str(authority.ca_file), *more)


@pytest.fixture
async def system(tmp_path, authority):
    async with System(tmp_path / "data", *options(authority)) as running:
        yield running


class Traffic:
    """Streams of every kind and numbered requests, one way through the proxy."""

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, system, authority, way):
        context = None if way == "plain" else authority.server_context("localhost")
        proxy = await system.token(AGENT, None if way == "plain" else way)
        trusted = system.ca_file if way == "intercept" else authority.ca_file
        checks = True if way == "plain" else ssl.create_default_context(cafile=str(trusted))
        connector = aiohttp.TCPConnector(limit=0, ssl=checks)
        timeout = aiohttp.ClientTimeout(total=120)
        async with (
            Theatre(context) as origin,
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        ):
            traffic = cls()
            traffic.origin, traffic.proxy, traffic.session = origin, proxy, session
            traffic.agent = Agent(session, origin.url, proxy)
            traffic.numbers, traffic.done = 0, []
            try:
                yield traffic
            finally:
                for task in (*traffic.streams, traffic.asking):
                    task.cancel()
                await asyncio.gather(*traffic.streams, traffic.asking, return_exceptions=True)

    async def begin(self):
        loop = asyncio.get_running_loop()
        moved = [asyncio.Event() for _ in range(6)]
        kinds = (self.agent.download, self.agent.upload, self.agent.talk)
        self.streams = [
            loop.create_task(kinds[seed % 3](seed, began)) for seed, began in enumerate(moved)
        ]
        self.asking = loop.create_task(self._ask())
        for began in moved:
            await asyncio.wait_for(began.wait(), 30)

    async def _ask(self):
        while True:
            self.numbers += 1
            number = str(self.numbers)
            self.done.append(await self.agent.put(number))
            await asyncio.sleep(0.02)

    def heard_between(self, begin, end):
        """Seconds after `begin` at which the origin has got bytes, before `end`."""
        return [at - begin for at in self.origin.heard if begin < at < end]


@pytest.mark.parametrize("way", WAYS)
async def test_a_control_server_that_stands_still_stops_everything_and_nothing_is_lost(
    system, authority, way
):
    (control,) = children(system, "control")
    async with Traffic.of(system, authority, way) as traffic, Operator(system) as operator:
        await traffic.begin()
        with unsupervised(system):
            with stopped(control):
                begin = time.monotonic()
                await asyncio.sleep(LEASE_S + 0.3 + LATE_S)
                before = traffic.origin.bytes_in, traffic.origin.requests, len(traffic.done)
                waiting = asyncio.get_running_loop().create_task(traffic.agent.put("late"))
                await asyncio.sleep(1.0)
                after = traffic.origin.bytes_in, traffic.origin.requests, len(traffic.done)
                end = time.monotonic()
                assert after == before
                assert not waiting.done()
                assert not any(task.done() for task in traffic.streams)
            assert max(traffic.heard_between(begin, end)) <= LEASE_S + 0.3
            await until(lambda: traffic.heard_between(end, time.monotonic()))
            assert min(traffic.heard_between(end, time.monotonic())) <= 1.0 + LATE_S
            for seed, task in enumerate(traffic.streams):
                assert await asyncio.wait_for(task, 60) == digest(seed)
            assert await waiting == "late"
            asked = len(traffic.done)
            await until(lambda: len(traffic.done) >= asked + 3)
            assert traffic.done == [str(n + 1) for n in range(len(traffic.done))]
            await operator.call("POST", "/v1/mesh/kill", {"selector": AGENT, "wait_s": 10})
            with pytest.raises((aiohttp.ClientError, AssertionError)):
                await asyncio.wait_for(traffic.asking, 30)


@pytest.mark.parametrize("way", WAYS)
async def test_beyond_the_hold_what_lives_is_cut_and_what_comes_is_told(tmp_path, authority, way):
    brief = options(authority, "--hold-for", "500ms")
    async with (
        System(tmp_path / "data", *brief) as system,
        Traffic.of(system, authority, way) as traffic,
    ):
        (control,) = children(system, "control")
        await traffic.begin()
        traffic.asking.cancel()
        with unsupervised(system), stopped(control):
            for task in traffic.streams:
                with pytest.raises((aiohttp.ClientError, AssertionError, TypeError)):
                    await asyncio.wait_for(task, 20)
            began = time.monotonic()
            assert await refusal(traffic) == (503, "enforcement_unknown", True)
            assert time.monotonic() - began < LATE_S
            heard = len(traffic.origin.heard)
        assert len(traffic.origin.heard) == heard
        async with asyncio.timeout(20):
            while await refusal(traffic) is not None:
                await asyncio.sleep(0.05)


async def refusal(traffic):
    """(status, code, whether it says when to try again) of a request that is refused; None when it passes."""
    user, _, secret = traffic.proxy.removeprefix("http://").partition("@")[0].rpartition(":")
    url = traffic.origin.url
    host = url.partition("://")[2]
    tunnelled = url.startswith("https")
    asked = ("CONNECT", host) if tunnelled else ("PUT", f"{url}/number/0")
    wire = await Wire.open(urlsplit(traffic.proxy).port)
    auth = f"Proxy-Authorization: {basic(user, secret)}"
    await wire.request(*asked, f"Host: {host}", auth, read=False)
    answer = await wire.answer(head=tunnelled)
    wire.close()
    if answer.status == 200:
        return None
    return answer.status, answer.json()["error"], "retry-after" in answer.headers


async def test_a_worker_that_wakes_passes_nothing_of_what_was_killed_while_it_slept(
    system, authority
):
    """Its connections were opened before, their attempts wait in its sockets, and the order behind them."""
    proxy_url = await system.token(AGENT)
    label, _, secret = proxy_url.removeprefix("http://").partition("@")[0].rpartition(":")
    async with Recorder() as origin, Operator(system) as operator:
        wires = [await tunnel(system.port, origin.host, label, secret) for _ in range(60)]
        await origin.has(connections=len(wires), requests=0)
        sleeper, _ = children(system, "proxy")
        with unsupervised(system):
            with stopped(sleeper):
                # As soon as the other worker has cut: the sleeper's own part in this is not waited for.
                receipt = await operator.call(
                    "POST", "/v1/mesh/kill", {"selector": AGENT, "wait_s": 0.2}
                )
                assert "applied" in [proxy["state"] for proxy in receipt["proxies"]]
                gone = await ended(wires)
                left = [wire for wire in wires if wire not in gone]
                assert left
                assert gone
                await asyncio.sleep(2 * LEASE_S)
                before = origin.arrived()
                attempts = 0
                for _ in range(ATTEMPTS // 2 // len(left) + 1):
                    attempts += attempt(left)
            while attempts < ATTEMPTS:
                attempts += attempt(left)
                await asyncio.sleep(0)
            await origin.all_ended(20)
            assert await ended(left) == left
            assert origin.arrived() == before


def attempt(wires):
    """A numbered byte on each, whether or not it lives; how many that were."""
    for wire in wires:
        wire.writer.write(b"!")
    return len(wires)


async def ended(wires):
    """Those that have been cut by now."""
    await asyncio.sleep(LATE_S)
    return [wire for wire in wires if wire.reader.at_eof() or wire.reader.exception()]
