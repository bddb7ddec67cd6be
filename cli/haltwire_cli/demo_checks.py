"""What the demo proves, decided from two sources alone: the receipt, and the mail provider's own books.

Pure: the demo fails on any finding that is not `ok`, and prints its sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from haltwire.wire.receipts import APPLIED, InstanceState, Receipt

PARTLY = "partly"


@dataclass(frozen=True, slots=True)
class HalfRead:
    """A message of whose body the provider has read a part, and reads no further for now."""

    instance: str
    key: str
    read: int
    expected: int


@dataclass(frozen=True, slots=True)
class Books:
    """What the provider has seen, at one moment."""

    accepted: Mapping[str, int] = field(default_factory=dict)
    "Messages accepted, by the instance that sent them."
    deliveries: Mapping[str, int] = field(default_factory=dict)
    "By message, how often it was delivered: accepted under different keys."
    bytes_read: int = 0
    "From all connections, ciphertext and all."
    connections: int = 0
    "Accepted so far."
    half_read: tuple[HalfRead, ...] = ()

    @property
    def total(self) -> int:
        """Messages accepted from all instances."""
        return sum(self.accepted.values())


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, and what came out."""

    ok: bool
    sentence: str


def stopped(receipt: Receipt, instances: Iterable[str]) -> Finding:
    """Every proxy has confirmed, and every instance was cut in the middle of a message."""
    if not (receipt.ok and receipt.durable and receipt.confirmed):
        return Finding(False, f"The kill is not confirmed: {receipt.unconfirmed_because}.")
    late = [proxy.proxy_id for proxy in receipt.proxies if proxy.state != APPLIED]
    if late:
        return Finding(False, f"Not every proxy has applied the kill: {_listed(late)}.")
    said = {state.instance: state for state in receipt.instances}
    if set(said) != set(instances):
        return Finding(
            False,
            f"The receipt names {_listed(sorted(said))}, but {_listed(sorted(instances))} were running.",
        )
    whole = [name for name, state in said.items() if not _was_cut_midway(state)]
    if whole:
        return Finding(
            False,
            f"The provider had half a message of {_listed(sorted(whole))}, but the receipt shows none that was sent partly.",
        )
    return Finding(
        True,
        f"All {len(receipt.proxies)} proxies confirmed, and every replica was cut in the middle of a message.",
    )


def silent(at_receipt: Books, at_resume: Books, tried: Mapping[str, int]) -> Finding:
    """The provider read nothing between receipt and resume, though every replica tried to reach it.

    `tried` says how often each instance was refused in that time.
    """
    read = at_resume.bytes_read - at_receipt.bytes_read
    if read:
        return Finding(False, f"The provider read {read} bytes between receipt and resume.")
    came = at_resume.connections - at_receipt.connections
    if came:
        return Finding(
            False, f"{came} connections reached the provider between receipt and resume."
        )
    idle = sorted(name for name, count in tried.items() if count < 1)
    if idle:
        return Finding(
            False,
            f"{_listed(idle)} did not try to send after the kill, so the silence means little.",
        )
    return Finding(
        True,
        f"Between receipt and resume the provider read {read} bytes on {came} new connections, while every replica went on trying.",
    )


def reconciled(receipt: Receipt, at_receipt: Books) -> Finding:
    """Per instance, what the receipt says was done fits what the provider had accepted at the kill.

    What the agent said it had done, and what was answered since, is the least; each interrupted
    message that had begun to go out may make one more.
    """
    known: list[str] = []
    for state in receipt.instances:
        since = state.since_metadata
        if since is None or since.completed is None or since.uncertain is None:
            return Finding(
                False, f"The receipt does not know what {state.instance} did since its last report."
            )
        least = _sent(state) + since.completed
        most = least + since.uncertain
        accepted = at_receipt.accepted.get(state.instance, 0)
        if not least <= accepted <= most:
            return Finding(
                False,
                f"The receipt gives {state.instance} {least} to {most} messages, but the provider had accepted {accepted}.",
            )
        known.append(f"{state.instance} {accepted} of {least} to {most}")
    unknown = set(at_receipt.accepted) - {state.instance for state in receipt.instances}
    if unknown or not known:
        return Finding(False, f"The receipt says nothing about {_listed(sorted(unknown))}.")
    return Finding(
        True,
        f"The provider's books at the kill lie within the receipt's bounds: {', '.join(known)}.",
    )


def complete(books: Books, expected: Iterable[str]) -> Finding:
    """Every message was delivered, and none twice."""
    wanted = set(expected)
    missing = sorted(wanted - set(books.deliveries))
    if missing:
        return Finding(False, f"{_some(missing)} never reached the provider.")
    strange = sorted(set(books.deliveries) - wanted)
    if strange:
        return Finding(
            False, f"{_some(strange)} reached the provider, but nobody meant to send it."
        )
    doubled = sorted(name for name, times in books.deliveries.items() if times != 1)
    if doubled:
        return Finding(False, f"{_some(doubled)} reached the provider more than once.")
    return Finding(
        True,
        f"After the resume all {len(books.deliveries)} messages were delivered: none missing, none doubled.",
    )


def _was_cut_midway(state: InstanceState) -> bool:
    return any(request.sent == PARTLY for request in state.in_flight)


def _sent(state: InstanceState) -> int:
    sent = (state.metadata or {}).get("sent", 0)
    return sent if isinstance(sent, int) else 0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no instance"


def _some(names: list[str]) -> str:
    head = ", ".join(names[:3])
    return f"{head} and {len(names) - 3} more" if len(names) > 3 else head
