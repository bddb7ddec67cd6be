"""A proxy and origins in a thread of their own, and what each side has made of the bytes of one client."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from datetime import datetime, timezone
from typing import Any

from haltwire.wire.names import AgentRef
from haltwire_proxy import addon
from haltwire_proxy.connections import Exchange
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

from support.client import Wire, tls_tunnel, tunnel
from support.strict import Heard, StrictOrigin
from support.world import TOKENS, World, basic, rule

TESTS = 3
"How many tests share the time."
AGENTS_PER_TOKEN = 500
"Below the 1,000 instances that a token may show."
_ROUND = 100


def fuzz(cases: SearchStrategy, run: Callable[[Any], None]) -> None:
    """Run cases until this test's share of HALTWIRE_FUZZ_SECONDS is over; a failure names its seed."""
    budget = float(os.environ.get("HALTWIRE_FUZZ_SECONDS", "60")) / TESTS
    first = int(os.environ.get("HALTWIRE_FUZZ_SEED", random.randrange(10**9)))
    end, failing, done = time.monotonic() + budget, False, 0
    for number in itertools.count(first):

        @seed(number)
        @settings(
            max_examples=_ROUND,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def once(case: Any) -> None:
            nonlocal failing, done
            if not failing and time.monotonic() > end:
                return
            try:
                run(case)
            except BaseException:
                failing = True
                raise
            done += 1

        try:
            once()
        except BaseException as error:
            error.add_note(f"HALTWIRE_FUZZ_SEED={number} finds it again")
            raise
        if time.monotonic() > end:
            break
    print(f"{done} cases, seeds {first} to {number}")


class Ground:
    """The proxy with an origin in the open and one that speaks TLS; one client at a time."""

    def __init__(self, data_dir, authority) -> None:
        self._data_dir, self._authority = data_dir, authority
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.recorded: list[Exchange] = []
        self.complaints: list[str] = []

    def __enter__(self) -> Ground:
        self._thread.start()
        self._stack = AsyncExitStack()
        self._original = addon.Exchange
        recorded = self.recorded

        class Recorded(Exchange):
            def __init__(self, *args: Any, **named: Any) -> None:
                super().__init__(*args, **named)
                recorded.append(self)

        addon.Exchange = Recorded  # type: ignore[misc]
        self._handler = _Complaints(self.complaints)
        logging.getLogger("haltwire_proxy").addHandler(self._handler)
        self.run(self._open(), 30)
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stack.aclose(), 30)
        logging.getLogger("haltwire_proxy").removeHandler(self._handler)
        addon.Exchange = self._original  # type: ignore[misc]
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = 20) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def _open(self) -> None:
        ca = self._authority.ca_file
        enter = self._stack.enter_async_context
        self.world = await enter(World(self._data_dir, ca, "http://127.0.0.1:1"))
        self.plain = await enter(StrictOrigin())
        self.tls = await enter(StrictOrigin(self._authority.server_context("localhost")))

    async def opened(self, way: str, alpn: tuple[str, ...] = ()) -> Wire:
        """A new client, of an agent of its own, and nothing recorded yet."""
        for origin in (self.plain, self.tls):
            origin.heard.clear()
        self.recorded.clear()
        self.complaints.clear()
        number = next(self._numbers)
        if number % AGENTS_PER_TOKEN == 0:
            self._secret = f"hwa_{number // AGENTS_PER_TOKEN:04}{'f' * 39}"
            fuzzing = rule(self._secret, "agent://acme/fuzz/*", "intercept")
            self.world.snapshot(tokens=(*TOKENS, fuzzing))
        self.label = f"acme.fuzz.a{number}"
        port = self.world.port
        if way == "inside":
            ca_file = self.world.ca_file
            return await tls_tunnel(port, self.tls.host, self.label, self._secret, ca_file, alpn)
        if way == "clear":
            return await tunnel(port, self.plain.host, self.label, self._secret)
        return await Wire.open(port)

    @property
    def credentials(self) -> bytes:
        return f"Proxy-Authorization: {basic(self.label, self._secret)}".encode()

    async def settle(self, wire: Wire, over: Callable[[bytes], bool] = lambda _: False) -> None:
        """Read until nothing moves any more, then end the client and wait for its upstreams' ends."""
        still, before = 0, None
        with suppress(ConnectionError, ssl.SSLError):
            while still < 3:
                with suppress(TimeoutError):
                    data = await asyncio.wait_for(wire.reader.read(65536), 0.004)
                    if not data or over(data):
                        break
                now = (len(self.recorded), sum(len(one.raw) for one in self._heard()))
                still = still + 1 if now == before and not self._busy() else 0
                before = now
        wire.close()
        Wire.opened.clear()
        async with asyncio.timeout(10):
            while self.world.enforcer.connections.count:
                await asyncio.sleep(0.001)
            for heard in self._heard():
                await heard.ended.wait()

    def _heard(self) -> list[Heard]:
        return [*self.plain.heard, *self.tls.heard]

    def _busy(self) -> bool:
        """Whether a request whose end has been read waits for its answer."""
        everything = self.world.enforcer.connections.everything()
        return any(exchange.request_complete for one in everything for exchange in one.exchanges)

    def _tunnelled(self) -> bool:
        caller = AgentRef.parse_label(self.label)
        tallies = self.world.enforcer.tallies.matching(
            lambda agent, _: agent == caller, datetime.min.replace(tzinfo=timezone.utc)
        )
        return any(one.tunnelled for one in tallies)

    def judge(self, *, ordered: bool) -> None:
        """What the origins have parsed is what was recorded, but for what was cut short with its client."""
        assert self.complaints == []
        if self._tunnelled():
            return  # it began as no HTTP at all: nobody has read it
        parsed = [request for heard in self._heard() for request in heard.requests]
        assert [error for heard in self._heard() for error in heard.errors] == []
        seen = [(one.method, one.target.partition("?")[0]) for one in parsed]
        noted = [(one.method, one.path) for one in self.recorded]
        if ordered:
            assert seen == noted[: len(seen)]
            assert len(noted) - len(seen) <= 1
        for request in parsed:
            exchanges = [
                one
                for one in self.recorded
                if (one.method, one.path) == (request.method, request.target.partition("?")[0])
            ]
            assert len(exchanges) >= seen.count((request.method, request.target.partition("?")[0]))
            assert "localhost" in {one.host for one in exchanges}
            host = request.host.lower().replace("localhost.:", "localhost:")
            assert host in (self.plain.host, self.tls.host)
            lengths = [one.bytes_up for one in exchanges if one.request_complete]
            if request.length is not None:
                assert request.length in lengths
            for name, _ in request.headers:
                dashed = name.replace("_", "-")
                assert not dashed.startswith(("x-agent-", "proxy-"))


class _Complaints(logging.Handler):
    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._kept.append(text)
