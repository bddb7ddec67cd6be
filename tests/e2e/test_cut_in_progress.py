"""A kill reaches what has only begun: a connect, a handshake, half a request. The receipt says what had been sent."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from support.client import Wire
from support.operator import Operator
from support.procs import connecting_to
from support.recorder import Recorder
from support.streams import Caller, Way, in_flight_of
from support.world import basic

PLAIN, TUNNEL, INTERCEPT = Way("http", None), Way("http", "tunnel"), Way("https", "intercept")


@dataclass(frozen=True)
class Case:
    """Something begun, and what the receipt has to say of it."""

    name: str
    way: Way
    begin: Callable[[Caller, Recorder], Awaitable[Wire]]
    expected: tuple[str, str | None, str] | None
    "Method, path and how much was sent; None when no request is in flight."
    tls: bool = True
    "Whether the origin of an https request answers its handshake."


async def _request(caller: Caller, origin: Recorder | None) -> Wire:
    wire = await caller.connect()
    await wire.send(caller.head("GET", "/waiting"))
    return wire


async def _connect_request(caller: Caller, origin: Recorder | None) -> Wire:
    wire = await Wire.open(caller.port)
    credentials = f"Proxy-Authorization: {basic(caller.label, caller.secret)}"
    await wire.request("CONNECT", caller.host, f"Host: {caller.host}", credentials, read=False)
    return wire


async def _waits_for_upstream_tls(caller: Caller, origin: Recorder) -> Wire:
    wire = await _request(caller, origin)
    await _until(lambda: origin.arrived() > 0)  # the ClientHello
    return wire


async def _half_a_client_hello(caller: Caller, origin: Recorder) -> Wire:
    bare = Caller(
        caller.port, caller.proxy_url, Way("http", "intercept"), caller.host, caller.trusted
    )
    wire = await bare.connect()
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(ours, theirs, server_hostname="localhost")
    try:
        hello.do_handshake()
    except ssl.SSLWantReadError:
        first = theirs.read()
    await wire.send(first[: len(first) // 2])
    return wire


async def _half_a_head(caller: Caller, origin: Recorder) -> Wire:
    wire = await caller.connect()
    await wire.send(caller.head("GET", "/waiting")[:20])
    if caller.way is TUNNEL:
        await _until(lambda: origin.arrived() == 20)
    return wire


async def _half_a_body(caller: Caller, origin: Recorder) -> Wire:
    wire = await caller.connect()
    await wire.send(caller.head("POST", "/upload", "Content-Length: 1000") + b"x" * 500)
    await _until(lambda: any(a.plain.endswith(b"x" * 500) for a in origin.arrivals))
    return wire


async def _may_it_go_on(caller: Caller, origin: Recorder) -> Wire:
    wire = await caller.connect()
    wishes = ("Content-Length: 1000", "Expect: 100-continue")
    await wire.send(caller.head("POST", "/upload", *wishes))
    await _until(lambda: origin.requests() == 1)
    return wire


CASES = [
    Case("upstream TLS", INTERCEPT, _waits_for_upstream_tls, ("GET", "/waiting", "none"), False),
    Case("client TLS", INTERCEPT, _half_a_client_hello, None),
    Case("head inside", INTERCEPT, _half_a_head, None),
    Case("head tunnelled", TUNNEL, _half_a_head, ("CONNECT", None, "unknown")),
    Case("body inside", INTERCEPT, _half_a_body, ("POST", "/upload", "partly")),
    Case("body in the open", PLAIN, _half_a_body, ("POST", "/upload", "partly")),
    Case("body tunnelled", TUNNEL, _half_a_body, ("CONNECT", None, "unknown")),
    Case("continue inside", INTERCEPT, _may_it_go_on, ("POST", "/upload", "partly")),
    Case("continue in the open", PLAIN, _may_it_go_on, ("POST", "/upload", "partly")),
    Case("continue tunnelled", TUNNEL, _may_it_go_on, ("CONNECT", None, "unknown")),
]


async def test_what_has_only_begun_is_cut(shared_system, authority):
    system = shared_system
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        begun = []
        for number, case in enumerate(CASES):
            agent = f"agent://acme/prod/case-{number}"
            secure = case.way.scheme == "https" and case.tls
            context = authority.server_context("localhost") if secure else None
            origin = await stack.enter_async_context(Recorder(context))
            url = await system.token(agent, case.way.tls)
            caller = Caller(system.port, url, case.way, origin.host, system.ca_file)
            begun.append((case, agent, origin, await case.begin(caller, origin)))
        for case, agent, origin, wire in begun:
            await _is_known(operator, agent)
            receipt = await operator.kill(agent)
            arrived = origin.arrived()
            assert receipt.cut == 1, case.name
            assert in_flight_of(receipt.body) == _flights(case.expected), case.name
            await wire.ended(timeout=5)
            await origin.all_ended()
            assert origin.arrived() == arrived, case.name


async def test_half_a_head_in_the_open_is_nobodys_yet_and_is_refused_when_it_is_whole(
    shared_system,
):
    system = shared_system
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        origin = await stack.enter_async_context(Recorder())
        url = await system.token("agent://acme/prod/mailer")
        caller = Caller(system.port, url, PLAIN, origin.host, system.ca_file)
        head = caller.head("GET", "/waiting")
        wire = await caller.connect()
        await wire.send(head[:-30])
        await operator.call("POST", "/v1/mesh/kill", {"selector": "agent://acme/prod/mailer"})
        await wire.send(head[-30:])
        answer = await wire.answer()
        assert (answer.status, answer.json()["error"]) == (403, "agent_killed")
        await wire.ended()
        assert origin.arrivals == []


async def test_a_connect_in_progress_is_given_up(shared_system):
    """A listener whose queue is full answers no SYN: the connect hangs until it is given up."""
    system = shared_system
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        for way, begin, expected in (
            (TUNNEL, _connect_request, ("CONNECT", None, "none")),
            (INTERCEPT, _request, ("GET", "/waiting", "none")),
            (PLAIN, _request, ("GET", "/waiting", "none")),
        ):
            port = await stack.enter_async_context(_full_listener())
            agent = f"agent://acme/prod/{way}"
            url = await system.token(agent, way.tls)
            host = f"127.0.0.1:{port}"
            caller = Caller(system.port, url, way, host, system.ca_file)
            wire = await begin(caller, None)
            await _until(lambda port=port: connecting_to(port) == 1)
            await _is_known(operator, agent)
            receipt = await operator.kill(agent)
            # Its cancellation takes a turn of the worker's loop; its own time limit is far away.
            await _until(lambda port=port: connecting_to(port) == 0, timeout=4)
            assert receipt.cut == 1
            assert in_flight_of(receipt.body) == _flights(expected, "127.0.0.1"), way
            await wire.ended(timeout=5)


def _flights(expected: tuple[str, str | None, str] | None, host: str = "localhost") -> Counter:
    return Counter() if expected is None else Counter({(expected[0], host, *expected[1:]): 1})


async def _until(holds: Callable[[], bool], timeout: float = 10) -> None:
    async with asyncio.timeout(timeout):
        while not holds():
            await asyncio.sleep(0.01)


async def _is_known(operator: Operator, agent: str) -> None:
    """A receipt is confirmed of agents that the control server has heard of."""
    name = agent.removeprefix("agent://").replace("/", ".")
    async with asyncio.timeout(10):
        while "agent" not in await operator.call("GET", f"/v1/mesh/agents/{name}"):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _full_listener() -> AsyncIterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            yield port
