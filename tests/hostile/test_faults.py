"""Fail closed: a fault in any step of the way, whatever it is, lets nothing through and leaves nothing behind.

Nobody names the steps: they are found in the modules, and those that a way takes are found by walking it.
For each of them the way is walked again with a fault in it. Then
- the client has `503 enforcement_failed`, or its connection is closed; never the answer of its origin,
  unless the fault came when that was already on its way, and then the connection is closed behind it;
- its origin has seen nothing, unless the fault came when the request was on its way;
- the connection is forgotten, and an agent beside it is served on.

Seen to fail with a protection removed or missing (each put back or made):
- Addon._decide that answers a fault with None: `addon.Addon._judge`, `identity.agrees`, `addon.another_sni` and
  others reach the origin
- Door.connection_made without FailClosed: at `sever.arm`, `transport.raw_socket`, `door.Door._wait` the client
  hangs, and the door is kept for ever
- _Handler.drain_writers without FailClosed around it: the origin has seen the request of a client that got 502
- Inspector._serve without it: at `watchdog.Watchdog.end` the connection stays registered for ever
- AgentApiSession as it was: at `agent_api.Answer.to_bytes` the client hangs
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest
import uvloop
from support.client import Answer, Http2, Wire, tunnel
from support.faults import (
    Fault,
    PanicError,
    Step,
    all_steps,
    instead,
    watched,
)
from support.origin import Origin
from support.world import BYSTANDER, INTERCEPTED, SECRET, World, basic

AUTH = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
READER = f"Proxy-Authorization: {basic('acme.prod.reader', INTERCEPTED)}"
WRONG = f"Proxy-Authorization: {basic('acme.prod.mailer', 'hwa_' + 'x' * 43)}"
NO_HANG_S = 4.0


@dataclass
class Stage:
    """A worker, two origins, and another agent's tunnel that stays open all the time."""

    world: World
    origin: Origin
    tls_origin: Origin
    gave_up: int = 0
    _runs: itertools.count = field(default_factory=itertools.count)

    async def __aenter__(self) -> Stage:
        self.world.enforcer.give_up = self._give_up
        await self._open_beside()
        await self.serves_others()
        return self

    async def _open_beside(self) -> None:
        self.bystander = await tunnel(
            self.world.port, self.origin.host, "acme.prod.bystander", BYSTANDER
        )

    async def __aexit__(self, *_: object) -> None:
        self.bystander.close()

    def _give_up(self) -> None:
        self.gave_up += 1

    @contextlib.contextmanager
    def ordered(self, name: str) -> Iterator[None]:
        """With the order in force that this way meets, if it meets one."""
        if name in ORDERS:
            selector, mode = ORDERS[name]
            self.world.kill(selector, mode=mode)
        try:
            yield
        finally:
            if not self.gave_up:
                for order in self.world.enforcer.replica.view.orders:
                    self.world.resume(order.kill_id)

    async def serves_others(self, *, cut: bool = False) -> None:
        """The agent beside it is served; on a new connection when it may have been `cut`."""
        if cut and self.bystander.writer.transport.is_closing():
            await self._open_beside()
        answer = await self.bystander.request("GET", "/echo", f"Host: {self.origin.host}")
        assert answer is not None
        assert answer.status == 200

    def fresh(self) -> str:
        """A header that no head has had before, since heads are remembered."""
        return f"X-Run: {next(self._runs)}"

    def seen(self) -> int:
        """Requests that have reached an origin, those of the agent beside it aside."""
        requests = [*self.origin.requests, *self.tls_origin.requests]
        return sum(method != "GET" for method, _, _ in requests)

    def on_their_way(self) -> int:
        """Bytes that an upstream has been given, or is about to be."""
        live = self.world.enforcer.connections.everything()
        return sum(
            side.written
            for one in live
            if one.identity.secret != BYSTANDER
            for side in one.upstreams
        )

    async def is_empty(self) -> bool:
        """Whether nothing is left but the agent beside it; asked until it is so, or for too long."""
        world = self.world
        for _ in range(400):
            live = world.enforcer.connections.everything()
            left = (world.services.doors, world.inspector.handlers, world.agent_api.sessions)
            if not any(left) and all(one.identity.secret == BYSTANDER for one in live):
                return True
            await asyncio.sleep(0.002)
        return False


Way = Callable[[Stage], Awaitable[tuple[Wire, str]]]
"Walks to the answer: the connection that it came on, and the answer in words."


async def tunnelled(stage: Stage) -> tuple[Wire, str]:
    wire = await Wire.open(stage.world.port)
    answer = await wire.request("CONNECT", stage.origin.host, AUTH, stage.fresh())
    if answer.status == 200:
        answer = await wire.request("POST", "/echo", f"Host: {stage.origin.host}", body=b"0123")
    return wire, said(answer)


async def plain(stage: Stage) -> tuple[Wire, str]:
    wire = await Wire.open(stage.world.port)
    target, host = f"{stage.origin.url}/echo", f"Host: {stage.origin.host}"
    return wire, said(await wire.request("POST", target, host, AUTH, stage.fresh(), body=b"0123"))


async def _inside(stage: Stage, *alpn: str) -> tuple[Wire, str, Answer]:
    target = f"localhost:{stage.tls_origin.port}"
    wire = await Wire.open(stage.world.port)
    answer = await wire.request("CONNECT", target, READER, stage.fresh())
    if answer.status == 200:
        trust = ssl.create_default_context(cafile=str(stage.world.ca_file))
        trust.set_alpn_protocols(list(alpn or ("http/1.1",)))
        await wire.start_tls(trust, "localhost")
    return wire, target, answer


async def inside_tls(stage: Stage) -> tuple[Wire, str]:
    wire, target, answer = await _inside(stage)
    if answer.status == 200:
        answer = await wire.request("POST", "/echo", f"Host: {target}", body=b"0123")
    return wire, said(answer)


async def over_http2(stage: Stage) -> tuple[Wire, str]:
    wire, target, answer = await _inside(stage, "h2")
    if answer.status != 200:
        return wire, said(answer)
    client = Http2(wire, target)
    await client.begin("POST", end_stream=False)
    client.connection.send_data(1, b"0123", end_stream=True)
    await client.flush()
    status, body = 0, b""
    while data := await wire.reader.read(65536):
        for event in client.connection.receive_data(data):
            match type(event).__name__:
                case "ResponseReceived":
                    status = int(dict(event.headers)[b":status"])
                case "DataReceived":
                    body += event.data
                case "StreamReset" | "ConnectionTerminated":
                    return wire, CLOSED
                case "StreamEnded":
                    return wire, said(Answer(status, {}, body))
    return wire, CLOSED


async def agent_api(stage: Stage) -> tuple[Wire, str]:
    wire = await Wire.open(stage.world.port)
    target = "http://haltwire.internal/ca.pem"
    return wire, said(await wire.request("GET", target, AUTH, stage.fresh()))


async def refused(stage: Stage) -> tuple[Wire, str]:
    wire = await Wire.open(stage.world.port)
    target = f"{stage.origin.url}/echo"
    return wire, said(await wire.request("POST", target, WRONG, stage.fresh(), body=b"0123"))


async def killed(stage: Stage) -> tuple[Wire, str]:
    return await inside_tls(stage)


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (tunnelled, plain, inside_tls, over_http2, agent_api, refused, killed)
}
ORDERS = {"killed": ("agent://acme/prod/reader", "cut")}
CLOSED, HANGS = "closed", "hangs"
FAILED = "503 enforcement_failed"
KINDS = {
    "once": (RuntimeError, True),
    "each time": (RuntimeError, False),
    "a panic": (PanicError, True),
}

HARMLESS = {
    "agent_api.AgentApiSession.connection_lost": "the loop's call when all is over",
    "transport.StreamProtocol.connection_lost": "the loop's call when all is over",
    "transport.StreamProtocol.on_lost": "as connection_lost",
    "turnstile.Course._go_on": "goes on with handlers, all of whose body is guarded",
    "turnstile._Entry.handled": "as _go_on",
    "lookups.Lookups._free": "the loop's call when a look-up is over: it gives back its place",
    "lookups.Lookups._leave": "as _free",
    "lookups.Lookups._work": "a thread, all of whose loop is guarded",
    "door.Door.connection_made": "the loop's call, all of whose body is guarded: nobody else would close it",
    "destinations._Judge.connection_made": "the loop's call, all of whose body is guarded: 502, undialled",
    "turnstile.Turnstile._serve": "first of all it has the next turn called, whatever comes after",
}
"Steps that nothing of ours can be around, and why a fault cannot come where it is put here."
TIDIES = {"connections.Connections.forget"}
"What cannot be made good for as long as it fails each time."


def said(answer: Answer) -> str:
    """An answer in words."""
    try:
        return f"{answer.status} {answer.json()['error']}"
    except (ValueError, KeyError, TypeError):
        return str(answer.status)


async def walked(
    stage: Stage, way: Way, at_the_end: Callable[[], None] = lambda: None
) -> tuple[str, bool]:
    """What the client got, and whether its connection was then ended for it; then it closes what is left."""
    wire = None
    try:
        async with asyncio.timeout(NO_HANG_S):
            wire, answer = await way(stage)
    except TimeoutError:
        answer = HANGS
    except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
        answer = CLOSED
    ended = False
    if wire is not None and answer not in (HANGS, CLOSED):
        try:
            async with asyncio.timeout(0.3):
                while await wire.reader.read(65536):
                    pass
            ended = True
        except TimeoutError:
            pass
        except (ConnectionError, ssl.SSLError):
            ended = True
    at_the_end()
    for opened in tuple(Wire.opened):
        if opened is not stage.bystander:
            opened.close()
            Wire.opened.remove(opened)
    return answer, ended


async def with_a_fault(stage: Stage, name: str, step: Step, kind: str, usual: str) -> list[str]:
    """What is wrong after the way has been walked with a fault in this step."""
    error, once = KINDS[kind]
    seen, on_their_way, in_time = stage.seen(), 0, False

    def note() -> None:
        nonlocal on_their_way
        on_their_way = stage.on_their_way()

    def note_end() -> None:
        nonlocal in_time
        in_time = fault.fired > 0

    fault = Fault(error, once=once, on_first=note)
    with stage.ordered(name):
        with instead(step, fault.wrap):
            answer, ended = await walked(stage, WAYS[name], note_end)
        empty = await stage.is_empty()
    if stage.gave_up:
        return []  # the worker has ended, and all its sockets with it
    # Whom an order stops could not be told, with a fault in that: then it stops everything.
    await stage.serves_others(cut=name in ORDERS)
    if not fault.fired:
        return []
    wrong = []
    if in_time and stage.seen() > seen and not on_their_way:
        wrong.append("its origin has seen it")
    if answer == HANGS:
        wrong.append("the client hangs")
    elif answer == usual:
        # An answer of our own, or one that was on its way already, may arrive if the end follows.
        fits = not usual.startswith("200") or ((on_their_way or name == "agent_api") and ended)
        if in_time and not fits:
            wrong.append("the client has its answer" + (", and goes on" if not ended else ""))
    elif answer not in (FAILED, CLOSED):
        wrong.append(f"the client has {answer}")
    if not empty and (once or str(step) not in TIDIES):
        wrong.append("something is left behind")
    return [f"{step}: {', '.join(wrong)}"] if wrong else []


@contextlib.asynccontextmanager
async def staged(data_dir, authority):
    """A stage of one's own."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with (
        Origin() as origin,
        Origin(authority.server_context("localhost")) as tls_origin,
        World(data_dir, authority.ca_file, "http://127.0.0.1:1") as world,
        Stage(world, origin, tls_origin) as stage,
    ):
        yield stage


async def every_fault(data_dir, authority, name: str, kind: str) -> list[str]:
    """All that goes wrong with a fault in any step of this way."""
    async with staged(data_dir, authority) as stage:
        with stage.ordered(name), watched(all_steps()) as taken:
            usual, _ = await walked(stage, WAYS[name])
        assert await stage.is_empty()
    steps = [step for step in sorted(taken, key=str) if str(step) not in HARMLESS]
    assert len(steps) > 20
    wrong = []
    while steps:
        async with staged(data_dir, authority) as stage:
            # What one fault has left behind must not be blamed on the next.
            while steps and not stage.gave_up and await stage.is_empty():
                wrong += await with_a_fault(stage, name, steps.pop(), kind, usual)
    return wrong


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WAYS)
def test_a_fault_in_any_step_fails_closed(data_dir, authority, name, kind):
    logging.disable(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            wrong = runner.run(every_fault(data_dir, authority, name, kind))
    finally:
        logging.disable(logging.NOTSET)
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")
