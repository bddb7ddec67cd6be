"""What agents do in the property test: they connect, ask, stream and go; what comes of it, `support.model` says."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import uvloop
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from support.client import Answer
from support.ends import NUMBERS, Client, End, soon
from support.model import INSPECTED, PLAIN, REFUSE, TUNNEL, WAIT, Line, Model, Who
from support.recorder import Arrival, Recorder
from support.streams import Caller, Way
from support.world import BYSTANDER, INTERCEPTED, SECRET, World, basic

AGENTS = {
    "agent://acme/prod/mailer": SECRET,
    "agent://acme/prod/reader": INTERCEPTED,
    "agent://acme/prod/bystander": BYSTANDER,
}
INSTANCES = ("i-1", "i-2")
EVERYBODY = tuple((agent, instance) for agent in AGENTS for instance in INSTANCES)
MANY = 14
"Connections that are enough for an order to choose from."
MAX_STREAM = 1_000_000

anyone = st.integers(0, 99)
whoever = st.sampled_from(EVERYBODY)
sizes = st.sampled_from((8, 800, 80_000, 400_000))


class Lines(RuleBasedStateMachine):
    """The worker, its clients and origins, and what the model says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.clients: list[Client] = []
        self._asked = 0
        self._stack = contextlib.AsyncExitStack()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.runner.run(self._start())

    async def _start(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        # The first refusal inside a CONNECT is not answered in another way than the hundredth.
        self._stack.enter_context(
            mock.patch("haltwire_proxy.refuse.RefusalRate.exceeded", return_value=False)
        )
        enter = self._stack.enter_async_context
        self.world = await enter(World(folder, None, "http://127.0.0.1:1"))
        # An origin for each: then its bytes are his.
        self.origins = {who: await enter(Recorder()) for who in EVERYBODY}

    def teardown(self) -> None:
        self.runner.run(self._end())
        self.runner.close()

    async def _end(self) -> None:
        for client in self.clients:
            client.end.close()
        await self._stack.aclose()

    @rule(who=whoever, plain=st.booleans())
    def connect(self, who: Who, plain: bool) -> None:
        self.runner.run(self._connect(who, plain))

    @precondition(lambda self: len(self.clients) < MANY)
    @rule(kind=st.sampled_from(("idle", "waiting", "stream")))
    def everybody_works(self, kind: str) -> None:
        """Each instance opens a connection of each sort, and uses it."""
        self.runner.run(self._work(kind))

    async def _work(self, kind: str) -> None:
        for who in EVERYBODY:
            for plain in (False, True):
                client = await self._connect(who, plain)
                if client and not client.line.asks and not client.connecting:
                    await self.ask(client, kind)

    async def _connect(self, who: Who, plain: bool) -> Client | None:
        caller = self._caller(who, plain)
        inside = INSPECTED if AGENTS[who[0]] == INTERCEPTED else TUNNEL
        line = Line(who, PLAIN if plain else inside, known=not plain)
        client = Client(line, caller, await End.open(self.world.port))
        verdict = self.model.connect(line)
        self.clients.append(client)
        if not plain:
            credentials = f"Proxy-Authorization: {basic(caller.label, caller.secret)}"
            head = f"CONNECT {caller.host} HTTP/1.1\r\n{credentials}\r\n\r\n"
            client.end.transport.write(head.encode())
            client.connecting = True
        if verdict == REFUSE:
            await self.is_refused(client)
            await self.settled()
            return None
        if verdict == WAIT:
            client.limit = 0
        await self.catch_up(client)
        if line.kind != TUNNEL and self.model.verdict(who)[0] == REFUSE:
            # Where we read, the refusal comes to the first request.
            await self.ask(client, "idle")
            return None
        await self.settled()
        return client

    @precondition(lambda self: self._free())
    @rule(which=anyone, kind=st.sampled_from(("idle", "idle", "waiting", "stream")))
    def request(self, which: int, kind: str) -> None:
        free = self._free()
        self.runner.run(self.ask(free[which % len(free)], kind))

    async def ask(self, client: Client, kind: str) -> None:
        """A request that is answered at once, only when the origin is told to, or a stream both ways."""
        self.send(client, kind)
        verdict = self.model.ask(client.line)
        if verdict == REFUSE:
            await self.is_refused(client)
        elif verdict == WAIT and client.limit is None:
            client.limit = client.end.got()
        await self.catch_up(client)
        await self.settled()

    def send(self, client: Client, kind: str) -> None:
        self._asked += 1
        client.path = f"/{kind}/{self._asked}"
        client.answered = client.stands = False
        client.up = client.down = 0
        more = ("Content-Length: 1000000000",) if kind == "stream" else ()
        client.end.transport.write(
            client.caller.head("POST" if more else "GET", client.path, *more)
        )

    @precondition(lambda self: self._streams())
    @rule(which=anyone, up=sizes, down=sizes)
    def stream_on(self, which: int, up: int, down: int) -> None:
        """A stream's client sends more, and so does its origin, if it has been reached."""
        streams = self._streams()
        client = streams[which % len(streams)]
        self.runner.run(self._stream_on(client, up, down))

    async def _stream_on(self, client: Client, up: int, down: int) -> None:
        self.push(client, up, down)
        await self.catch_up(client)

    def push(self, client: Client, up: int, down: int) -> None:
        if client.up + up < MAX_STREAM:
            client.push(up)
        arrival = self.arrival(client)
        if arrival is not None and client.down + down < MAX_STREAM:
            client.push_down(arrival, down)

    @rule(who=whoever)
    def answer(self, who: Who) -> None:
        """What waits at this origin is answered; held lines have it when they go on."""
        self.runner.run(self._answer(who))

    async def _answer(self, who: Who) -> None:
        for client in self.clients:
            line = client.line
            if line.who != who or not line.asks or client.kind != "waiting" or client.answered:
                continue
            arrival = self.arrival(client)
            if arrival is not None:
                client.answered = True
                arrival.waiting = False
                body = client.path.encode()
                arrival.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await self.catch_up(client)
        await self.settled()

    @precondition(lambda self: self._present())
    @rule(which=anyone, reset=st.booleans())
    def close(self, which: int, reset: bool) -> None:
        present = self._present()
        self.runner.run(self._close(present[which % len(present)], reset))

    async def _close(self, client: Client, reset: bool) -> None:
        # An end behind bytes that nobody reads does not arrive; a reset does.
        reset = reset or client.is_stream
        client.end.close(reset=reset)
        self.model.leave(client.line, reset=reset)
        if not client.line.leaving:
            self.clients.remove(client)
        await self.settled()

    # What comes of it.

    async def catch_up(self, client: Client) -> None:
        """What can be answered has been, and all that a stream was given has arrived."""
        line = client.line
        if client not in self.clients or line.leaving:
            return
        if client.connecting:
            if line.kind == TUNNEL and not line.admitted:
                return
            answer = await client.end.answer(head=True)
            assert answer.status == 200, answer
            client.connecting = False
        if line.held or not line.asks or not line.admitted:
            return
        if client.kind == "idle" or (client.answered and client.kind == "waiting"):
            self.is_answered(client, await client.end.answer())
            return
        await soon(lambda: self.arrival(client) is not None, lambda: (line, client.path))
        arrival = self.arrival(client)
        assert arrival is not None
        if client.kind == "stream":
            if not client.answered:
                client.push_down(arrival, 0)
            await soon(lambda: len(client.came_up(arrival)) >= client.up, lambda: (line, client.up))
            await soon(lambda: len(client.came_down()) >= client.down, lambda: (line, client.down))
            self.streams_in_order(client)

    def is_answered(self, client: Client, answer: Answer) -> None:
        body = client.path.encode() if client.kind == "waiting" else b"ok"
        assert (answer.status, answer.body) == (200, body)
        client.line.asks = client.line.kept = False

    def streams_in_order(self, client: Client) -> None:
        arrival = self.arrival(client)
        if arrival is not None:
            assert NUMBERS[: client.up].startswith(client.came_up(arrival)), client.line
            assert NUMBERS[: client.down].startswith(client.came_down()), client.line

    async def is_refused(self, client: Client) -> None:
        """Its client is told by which order, and the connection ends."""
        if client.connecting and client.line.kind == INSPECTED:
            assert (await client.end.answer(head=True)).status == 200
        self.says_refusal(client, await client.end.answer())
        if client.kind == "stream":
            client.end.close(reset=True)  # it has not sent all, and nobody ends it soon
        await client.end.is_ended()
        self.clients.remove(client)

    def says_refusal(self, client: Client, answer: Answer) -> None:
        verdict, order = self.model.verdict(client.line.who)
        assert verdict == REFUSE, f"refused without an order: {client.line}"
        assert order is not None
        told = answer.json()
        expected = (403, "agent_killed", order.kill_id)
        assert (answer.status, told["error"], told["kill_id"]) == expected

    async def settled(self) -> None:
        """The worker's books say what the model says."""
        await soon(lambda: self._books() == self._expected_books(), self._both_books)

    def _books(self) -> tuple[int, int, int]:
        connections = self.world.enforcer.connections
        connections.look_for_lost()
        waiters = sum(len(one.waiters) for one in connections.everything())
        return connections.count, len(connections.held), waiters

    def _expected_books(self) -> tuple[int, int, int]:
        known = [line for line in self.model.lines if line.known]
        return len(known), sum(line.held for line in known), sum(line.waits for line in known)

    def _both_books(self) -> object:
        return self._books(), self._expected_books(), self.model.lines

    def arrival(self, client: Client) -> Arrival | None:
        """Where its request has arrived."""
        found = [
            one for one in self.origins[client.line.who].arrivals if client.path in one.paths[-1:]
        ]
        return found[0] if found else None

    def _free(self) -> list[Client]:
        return [one for one in self._present() if not one.line.asks and not one.connecting]

    def _streams(self) -> list[Client]:
        return [one for one in self._present() if one.is_stream]

    def _present(self) -> list[Client]:
        return [client for client in self.clients if not client.line.leaving]

    def _caller(self, who: Who, plain: bool) -> Caller:
        agent, instance = who
        secret = AGENTS[agent]
        label = agent.removeprefix("agent://").replace("/", ".")
        tls = "intercept" if secret == INTERCEPTED else "tunnel"
        return Caller(
            self.world.port,
            f"http://{label}:{secret}@127.0.0.1:{self.world.port}",
            Way("http", None if plain else tls),
            f"127.0.0.1:{self.origins[who].port}",
            self.world.ca_file,
            instance,
        )
