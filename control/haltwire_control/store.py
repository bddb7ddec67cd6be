"""What a store promises: steps become durable in one order, state and audit events together.

A step is decided against the latest state inside the store, so nothing can come between the decision
and the commit. What a caller is told has happened is on disk, or is said not to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from haltwire.wire.receipts import Receipt

from haltwire_control.audit import EventRow, Verification
from haltwire_control.state import Change, Note, Order, State

type Step[T] = Callable[[State], Change[T]]


class StoreError(Exception):
    """The store could not take a change: nothing of it holds. The API answers 503."""


class StoreFullError(StoreError):
    """The disk is full or failing, and what room is left is for orders. The API answers 507."""

    def __init__(self) -> None:
        super().__init__(
            "cannot write: the disk of the control server is full or failing; until it takes everything again, only kills, resumes and revocations are stored; nothing was changed"
        )


class StoreLockedError(OSError):
    """Another control server has the data directory; the process ends with this sentence."""


@dataclass(frozen=True, slots=True)
class Committed[T]:
    """A change that holds."""

    change: Change[T]
    durable: bool
    "False: it holds in memory and at the proxies, and the store has not taken it yet."

    @property
    def outcome(self) -> T:
        """What the step was asked for."""
        return self.change.outcome


@dataclass(frozen=True, slots=True)
class StoredKill:
    """An order with its latest receipt."""

    order: Order
    receipt: Receipt | None


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a store has of what a proxy says that it has applied."""

    head_hash: str | None
    "The audit hash of the revision that was asked for; None when there is none by that number."
    known: frozenset[str]
    "Those of the kill ids that it has ever stored."


@dataclass(frozen=True, slots=True)
class KillStory:
    """All that is stored about one order."""

    order: Order
    receipt: Receipt | None
    resume: Receipt | None = None
    "The receipt of what lifted it."
    notes: tuple[Note, ...] = ()
    "Oldest first."
    events: tuple[EventRow, ...] = ()
    "The audit rows about it, oldest first."


class Listener(Protocol):
    """Is told, in the event loop and in the order of commits, before whoever asked for the change."""

    def committed(self, change: Change[Any], durable: bool) -> None:
        """A change holds."""

    def stored(self, kill_ids: frozenset[str]) -> None:
        """Orders that were volatile are on disk now."""


class Store(Protocol):
    """State, events and receipts on disk."""

    failures: int
    "Changes that could not be written, since the start."
    was_cut_short: bool
    "Whether it was found at the start without the log that must lie beside it: its latest changes are lost."
    problem: str
    "Why the latest urgent change could not be stored, in words that a caller may read; empty once one was."

    @property
    def is_full(self) -> bool:
        """Whether only urgent steps are taken, because the disk failed as it does without room for others."""

    def start(self, listener: Listener) -> State:
        """Begin to take changes; the state as it was left. Called once, inside the event loop."""

    async def commit[T](
        self, step: Step[T], *, fallback: Step[T] | None = None, urgent: bool = False
    ) -> Committed[T]:
        """Decide and store. An urgent step goes before all that waits.

        Raises StoreError when the store fails and no fallback is given; with one, the fallback's change
        holds in memory, and is stored before anything else as soon as the store works again.
        What a step itself raises is raised here, and nothing is changed.
        """

    async def events_after(self, seq: int, limit: int) -> list[EventRow]:
        """Events with a higher seq, oldest first."""

    async def events_before(self, seq: int | None, limit: int) -> list[EventRow]:
        """The latest events, or those with a lower seq; newest first."""

    async def verify(self) -> Verification:
        """Recompute the audit chain over the stored rows."""

    async def kill(self, kill_id: str) -> KillStory | None:
        """One order, in force or lifted; of very many notes or events the first and the latest."""

    async def kills(self, lifted: bool, limit: int) -> list[StoredKill]:
        """Orders in force, or all of them, newest first; a limit of -1 is none."""

    async def lineage(self, revision: int, kill_ids: Sequence[str]) -> Lineage:
        """What is stored of a revision and of these orders."""

    async def probe(self) -> None:
        """Try a write that changes nothing. Raises StoreError."""

    async def close(self) -> None:
        """Finish what is queued and let go of the file. Idempotent."""
