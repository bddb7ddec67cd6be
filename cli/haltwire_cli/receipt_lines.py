"""The lines of a receipt: one per proxy, one per instance, and what each fact on them is called.

Pure. Whatever agents or other people wrote passes through `escape`, or through the `quote` that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from haltwire.wire.codec import format_time, parse_time
from haltwire.wire.orders import DRAIN, HOLD
from haltwire.wire.receipts import (
    APPLIED,
    AWAY,
    FENCED,
    GONE,
    NO_AGENT,
    PENDING,
    RUNNING,
    WAITING,
)

from haltwire_cli.output import count, escape, facts, milliseconds, quantity, stamp

Json = Mapping[str, Any]


def proxy_lines(receipt: Json, *, lifted: bool) -> Iterable[str]:
    """What each proxy has proven."""
    for proxy in receipt.get("proxies", ()):
        name = f"proxy {escape(proxy['proxy_id'])}"
        state = proxy["state"]
        if state == APPLIED:
            yield f"{name}: {', '.join(_applied(proxy, receipt, lifted))}"
        elif state == FENCED:
            yield f"{name}: {', '.join((fenced_text(proxy, receipt), *_fenced(proxy, receipt)))}"
        elif state == GONE:
            yield f"{name}: has ended, with all its connections"
        elif state == PENDING:
            yield f"{name}: SILENT, no answer yet"
        else:
            yield f"{name}: {escape(state)}"


def instance_lines(
    receipt: Json, head_of: Callable[[Json], str | None], *, progress: bool = True
) -> Iterable[str]:
    """A line per instance of which `head_of` knows something and, with `progress`, how far each was."""
    instances = receipt.get("instances", ())
    several = len({instance["agent_uri"] for instance in instances}) > 1
    for instance in instances:
        name = escape(instance["instance"])
        if several:
            name = f"{escape(instance['agent_uri'])} {name}"
        if head := head_of(instance):
            yield f"instance {name}: {head}"
            if progress:
                yield from (f"  {line}" for line in _progress(instance, receipt["mode"] == HOLD))


def stopped(instance: Json, receipt: Json, *, lifted: bool) -> str:
    """What an order did to an instance."""
    if instance.get("seen_at_proxy") is None:
        parts = ["never seen at a proxy"]
    else:
        parts = _what_became(instance, receipt, lifted)
    if instance.get("last_byte_at"):
        parts.append(f"last byte at {stamp(instance['last_byte_at'])[11:]}")
    return ", ".join(parts)


def would_lose(instance: Json) -> str:
    """What an order would stop of an instance."""
    live = instance.get("connections_live")
    return "connections not known" if live is None else count(live, "live connection")


def after_resume(
    instance: Json, resumed_at: str, quote: Callable[[object], str] = escape
) -> str | None:
    """How an instance is since a resume, as far as it was seen; None when nobody looked."""
    state, said = instance.get("state"), facts(instance.get("metadata"))
    checkpoint = f"its checkpoint is {quote(said)}" if said else "it left no checkpoint"
    if state == RUNNING:
        said_at = instance.get("metadata_at")
        if not said:
            words = "running, without a checkpoint"
        elif said_at and parse_time(said_at) > parse_time(resumed_at):
            words = f"running, and has said since: {quote(said)}"
        else:
            words = f"running, resumed from checkpoint {quote(said)}"
    elif state == WAITING:
        words = f"waiting: not seen since the resume; {checkpoint}"
    elif state == AWAY:
        words = f"gone: a resume starts nothing that has ended; {checkpoint}"
    else:
        return None
    return ", ".join([words, *_let_go(instance)])


def since_text(since: Json, *, held: bool = False) -> str:
    """The requests since an instance last said how far it is; `held`: those that are under way go on later."""
    done, uncertain = since.get("completed"), since.get("uncertain")
    if done is None:
        return "requests not read (tunnel)"
    what = "frozen half-way" if held else "uncertain: look there before sending again"
    return f"{count(done, 'request')} completed" + (f", {uncertain} {what}" if uncertain else "")


def sent_text(request: Json) -> str:
    """How much of a request's body had reached the other side."""
    up, acknowledged = request.get("bytes_up"), request.get("bytes_up_acked")
    if up is None:
        return "not read (tunnel)"
    if up == 0:
        return "no body"
    if acknowledged is None:
        return f"{up} bytes sent"
    return f"{acknowledged} of {up} bytes received there"


def totals_text(totals: Json, quote: Callable[[object], str] = escape) -> str | None:
    """The instances' progress, added up; None when they said nothing of it."""
    done, remaining = totals.get("done"), totals.get("remaining")
    if done is None and remaining is None:
        return None
    unit = f" {quote(totals['unit'])}" if totals.get("unit") else ""
    rest = "remaining: not known" if remaining is None else f"{quantity(remaining)} remaining"
    return rest if done is None else f"{quantity(done)}{unit} done, {rest}"


def is_draining(receipt: Json) -> bool:
    """Whether some of what was open may still be open."""
    return receipt["mode"] == DRAIN and receipt.get("halted_at") is None


def drain_end(receipt: Json) -> str:
    """When the grace of a drain is over."""
    grace = timedelta(seconds=receipt.get("grace_s") or 0.0)
    return format_time(parse_time(receipt["requested_at"]) + grace)


def cut_at_deadline(receipt: Json) -> int:
    """How many connections an ended drain cut because its time was over; else 0."""
    took, grace = receipt.get("halted_in_ms"), receipt.get("grace_s") or 0.0
    if took is None or took < grace * 1000:
        return 0
    return added(receipt.get("proxies", ()), "connections_cut") or 0


def added(rows: Iterable[Json], name: str) -> int | None:
    """The sum of what is known, or None when nothing is."""
    known = [row[name] for row in rows if row.get(name) is not None]
    return sum(known) if known else None


def _applied(proxy: Json, receipt: Json, lifted: bool) -> list[str]:
    mode = receipt["mode"]
    # Of an agent that nobody has seen, nothing was stopped yet.
    unseen = receipt.get("unconfirmed_because") == NO_AGENT
    did = "in force" if unseen else {DRAIN: "refuses what is new", HOLD: "froze it"}.get(mode)
    parts = [f"{did or 'stopped it'} after {milliseconds(proxy.get('latency_ms'))}"]
    parts += _became(proxy, receipt, lifted)
    if mode == HOLD:
        parts.append(_residual(proxy.get("residual_bytes_max")))
    return parts


def fenced_text(proxy: Json, receipt: Json) -> str:
    """What is certain of a proxy that has not answered and has no lease."""
    took = proxy.get("latency_ms")
    since = "" if took is None else f" after {milliseconds(took)}"
    if receipt["mode"] == DRAIN:
        return f"silent: its lease had expired{since}, it passes nothing until it is back"
    return f"silent: its lease had expired{since}, it passes nothing more"


def confirmed_by(receipt: Json) -> str:
    """Who makes it certain, as the second half of a sentence."""
    states = [proxy["state"] for proxy in receipt.get("proxies", ())]
    silent, confirmed = states.count(FENCED), states.count(APPLIED)
    if not silent:
        return "every proxy has confirmed it"
    expired = f"{silent} silent, lease expired"
    if not confirmed:
        return f"no proxy has answered, but none passes anything more ({expired})"
    return f"every proxy has confirmed it or passes nothing more ({expired})"


def _fenced(proxy: Json, receipt: Json) -> Iterable[str]:
    yield from _became({}, receipt, lifted=False)
    most = proxy.get("residual_bytes_max")
    if most is None:
        yield "how much may still arrive from its kernel is not known"
    elif most:
        yield f"up to {count(most, 'byte')} may still arrive from its kernel"


def _residual(most: int | None) -> str:
    if most is None:
        return "how much had left already is not known"
    return f"up to {count(most, 'byte')} had left already" if most else "nothing was on its way"


def _what_became(instance: Json, receipt: Json, lifted: bool) -> list[str]:
    lost = instance.get("lost_while_held")
    return [*_became(instance, receipt, lifted), *([f"{lost} gave up while held"] if lost else [])]


def _became(row: Json, receipt: Json, lifted: bool) -> list[str]:
    """What became of the live connections of a proxy or an instance."""
    cut = row.get("connections_cut")
    if receipt["mode"] == HOLD:
        held = row.get("connections_held")
        return ["held: not known" if held is None else f"{count(held, 'connection')} held"]
    if is_draining(receipt) and not lifted:
        live = row.get("connections_live")
        left = "left: not known" if live is None else f"{count(live, 'connection')} left"
        return [left, *([f"cut {count(cut, 'connection')}"] if cut else [])]
    return ["cut: not known" if cut is None else f"cut {count(cut, 'connection')}"]


def _let_go(instance: Json) -> Iterable[str]:
    if live := instance.get("connections_live"):
        yield f"{count(live, 'connection')} let go on"
    if held := instance.get("connections_held"):
        yield f"{count(held, 'connection')} held by another order"
    if lost := instance.get("lost_while_held"):
        yield f"{lost} gave up while held"


def _progress(instance: Json, held: bool) -> Iterable[str]:
    if said := facts(instance.get("metadata")):
        yield f"last said: {escape(said)}"
    since = instance.get("since_metadata")
    if since is not None:
        when = "since then" if instance.get("metadata") else "in all"
        yield f"{when}: {since_text(since, held=held)}"
    for request in instance.get("in_flight", ()):
        yield f"in flight: {_in_flight(request)}"


def _in_flight(request: Json) -> str:
    path, sent = request.get("path"), sent_text(request)
    what = f"{escape(request['method'])} {escape(request['host'])}"
    what += escape(path) if path is not None else " (path not read: tunnel)"
    if request.get("bytes_up") is None:
        sent = f"sent: {sent}"
    word = request.get("sent", "unknown")
    return f"{what}, {sent}" + ("" if word == "unknown" else f", sent {escape(word)}")
