"""Who may pass: a few lines that are easy to believe, which the property test holds a worker to.

It knows orders and connections, no sockets. What becomes of a new request is a verdict, what becomes
of a live connection its fate; an order that is put in force, strengthened or lifted touches some.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

CUT, DRAIN, HOLD = "cut", "drain", "hold"
MODES = (HOLD, DRAIN, CUT)
"From the weakest to the strongest."
PASS, REFUSE, WAIT = "pass", "refuse", "wait"
PLAIN, INSPECTED, TUNNEL = "plain", "inspected", "tunnel"

Who = tuple[str, str]
"An agent and its instance."


@dataclass(eq=False)
class Order:
    """An order in force."""

    kill_id: str
    selector: str
    mode: str
    over: bool = False
    "Of a drain: whether its grace is over."
    cut: Counter[Who] = field(default_factory=Counter)
    lost: Counter[Who] = field(default_factory=Counter)
    "Of a hold: the connections whose clients gave up."

    def matches(self, who: Who) -> bool:
        return matches(self.selector, *who)


@dataclass(eq=False)
class Line:
    """A client's connection through the proxy. It has one request at a time, a tunnel's CONNECT too."""

    who: Who
    kind: str
    known: bool = True
    "Whether the proxy knows whose it is: not before the first head has been read."
    asks: bool = False
    "Whether there is a request of which the client has not got the whole answer."
    admitted: bool = True
    "Whether the proxy has let that request, or the CONNECT, through."
    kept: bool = False
    "Whether its answer has been read to the end, by a proxy that may not pass it on yet."
    held: bool = False
    draining: bool = False
    "Whether it lived when a drain came that covers it."
    leaving: bool = False
    "Whether the client of a held tunnel has ended its direction: nobody can tell that it has gone."

    @property
    def waits(self) -> bool:
        """Whether the proxy keeps a request of it back."""
        return self.known and not self.admitted

    @property
    def busy(self) -> bool:
        """Whether the proxy has to think that bytes are on their way."""
        return self.kind == TUNNEL or (self.asks and self.admitted and not self.kept)


@dataclass(frozen=True)
class Outcome:
    """What a change of orders does to lines at once."""

    cut: list[Line] = field(default_factory=list)
    refused: list[Line] = field(default_factory=list)
    "Their requests had waited."
    left: list[Line] = field(default_factory=list)
    "Their clients had gone while they were held: they go on, and end."


@dataclass(frozen=True)
class Told:
    """What an order's report has to say of one instance."""

    live: int
    held: int
    lost: int
    cut: int


@dataclass
class Model:
    """What is in force, and the lines that must still be there."""

    orders: list[Order] = field(default_factory=list)
    "In the order in which they were first given."
    lines: list[Line] = field(default_factory=list)

    def verdict(self, who: Who) -> tuple[str, Order | None]:
        """What becomes of a new request, and the order that says so."""
        matching = [order for order in self.orders if order.matches(who)]
        for order in matching:
            if order.mode != HOLD:
                return REFUSE, order
        return (WAIT, matching[0]) if matching else (PASS, None)

    def fate(self, who: Who) -> str | None:
        """What becomes of live connections."""
        modes = {CUT if order.over else order.mode for order in self.orders if order.matches(who)}
        return next((mode for mode in (CUT, HOLD, DRAIN) if mode in modes), None)

    def connect(self, line: Line) -> str:
        """A line's CONNECT, or for a plain one nothing yet. Where we read, it is not judged."""
        verdict = self.verdict(line.who)[0] if line.kind == TUNNEL else PASS
        if verdict != REFUSE:
            self.lines.append(line)
        self._admit(line, verdict)
        return verdict

    def ask(self, line: Line) -> str:
        """A request on it."""
        line.asks = line.known = True
        if line.kind == TUNNEL:
            return WAIT if line.held else PASS
        verdict, _ = self.verdict(line.who)
        if verdict == REFUSE:
            self.lines.remove(line)
        self._admit(line, verdict)
        return verdict

    def leave(self, line: Line, *, reset: bool) -> None:
        """Its client closes it."""
        if line.held and line.kind == TUNNEL and line.admitted and not reset:
            line.leaving = True
            return
        self.lines.remove(line)
        if line.held and (line.busy or line.waits):
            for order in self.orders:
                if order.mode == HOLD and order.matches(line.who):
                    order.lost[line.who] += 1

    def kill(self, order: Order) -> Outcome:
        """Put an order in force."""
        self.orders.append(order)
        return self._settle(order)

    def strengthen(self, order: Order, mode: str) -> Outcome:
        """The same order in a stronger mode; a drain that stays one ends now."""
        order.over = order.mode == mode == DRAIN
        order.mode = mode
        return self._settle(order)

    def end_grace(self, order: Order) -> Outcome:
        """A drain has lasted long enough."""
        order.over = True
        return self._settle(order)

    def lift(self, order: Order) -> Outcome:
        """It permits; it revives nothing."""
        self.orders.remove(order)
        return self._settle(order)

    def told(self, order: Order) -> dict[Who, Told]:
        """The order's report as of now; who is not in it has nothing to his name."""
        alive = [line for line in self.lines if order.matches(line.who) and line.known]
        if order.mode == DRAIN:
            alive = [line for line in alive if line.draining and line.busy]
        else:
            alive = [line for line in alive if line.busy or line.waits]
        held = Counter(line.who for line in alive if line.held)
        live = Counter(line.who for line in alive if not line.held)
        return {
            who: Told(live[who], held[who], order.lost[who], order.cut[who])
            for who in {*held, *live, *order.lost, *order.cut}
        }

    def _admit(self, line: Line, verdict: str) -> None:
        line.admitted = verdict == PASS
        line.held = line.held or verdict == WAIT

    def _settle(self, touching: Order) -> Outcome:
        outcome = Outcome()
        # Of an agent that is named, all instances are looked at: an idle one under a hold is frozen then.
        named = touching.selector.partition("~")[0]
        for line in [one for one in self.lines if one.known and matches(named, *one.who)]:
            fate = self.fate(line.who)
            verdict, _ = self.verdict(line.who)
            if fate == CUT:
                self.lines.remove(line)
                outcome.cut.append(line)
                touching.cut[line.who] += 1
                continue
            line.held = fate == HOLD
            if line.leaving and not line.held:
                outcome.left.append(line)
            line.draining |= any(
                order.mode == DRAIN and order.matches(line.who) for order in self.orders
            )
            if line.waits and verdict == REFUSE:
                self.lines.remove(line)
                outcome.refused.append(line)
            elif line.waits:
                line.admitted = verdict == PASS
        return outcome


def matches(selector: str, agent: str, instance: str) -> bool:
    """Whether a selector names this instance of this agent. All agents here have three segments."""
    name, _, only = selector.partition("~")
    if only and only != instance:
        return False
    wanted, has = name.split("/")[2:], agent.split("/")[2:]
    if wanted[-1] == "**":
        wanted = wanted[:-1]
        has = has[: len(wanted)]
    return len(wanted) == len(has) and all(map(fnmatchcase, has, wanted))
