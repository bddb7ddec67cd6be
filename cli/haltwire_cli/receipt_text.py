"""Receipts as plain words for a person under stress: the verdict first, then its proof, then what to reconcile.

Pure: `now` is an argument. Whatever agents or other people wrote passes through `escape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from haltwire.wire.codec import parse_time
from haltwire.wire.orders import DRAIN, HOLD
from haltwire.wire.receipts import NO_AGENT, NO_PROXY, OUTSIDE_PROXY, PENDING, WAITING

from haltwire_cli.output import clock, count, due, escape, listed, milliseconds
from haltwire_cli.receipt_lines import (
    added,
    after_resume,
    confirmed_by,
    cut_at_deadline,
    drain_end,
    instance_lines,
    is_draining,
    proxy_lines,
    stopped,
    totals_text,
    would_lose,
)

Json = Mapping[str, Any]


def kill_text(receipt: Json, now: datetime, *, lifted: bool = False, asked: str = "") -> str:
    """The receipt of a kill. `asked`: the mode that was asked for, where that is known."""
    return "\n".join(
        [
            verdict(receipt, now, lifted=lifted),
            *(f"  {line}" for line in _proof(receipt, asked, lifted)),
            *([] if lifted else _standing(receipt, now)),
        ]
    )


def dry_run_text(receipt: Json) -> str:
    """Who would be stopped by an order that was not given."""
    matched, instances = receipt["matched"], receipt.get("instances", ())
    would = {DRAIN: "drain", HOLD: "hold"}.get(receipt["mode"], "stop")
    live = added(instances, "connections_live")
    found = [count(matched["agents"], "agent"), count(matched["instances"], "instance")]
    found.append(
        "connections not known"
        if live is None and instances
        else count(live or 0, "live connection")
    )
    lines = [f"Nothing was ordered. Would {would}: {', '.join(found)}."]
    if matched["agents"] == 0:
        lines.append(f"No agent by that name has been seen: {escape(receipt['selector'])}.")
    lines += [f"  {line}" for line in instance_lines(receipt, would_lose)]
    if already := [escape(kill_id) for kill_id in receipt.get("still_killed_by", ())]:
        lines.append(f"All or part of this is stopped already by {listed(already)}.")
    return "\n".join([*lines, *_similar(receipt)])


def resume_text(receipt: Json, carve_out: bool = False) -> str:
    """The receipt of a resume: what is lifted, what still stops it, and who goes on."""
    selector = escape(receipt["selector"])
    lifted = [escape(kill_id) for kill_id in receipt.get("lifted", ())]
    still = [escape(kill_id) for kill_id in receipt.get("still_killed_by", ())]
    lines = []
    if lifted:
        lines.append(f"Resumed {selector}: lifted {listed(lifted)}.")
    elif carve_out and not still:
        lines.append(f"Resumed {selector}: excepted from every order that goes on stopping others.")
    elif not still:
        lines.append(f"Nothing was stopping {selector}.")
    if still:
        lines.append(
            f"{selector} is still stopped by {listed(still)}: resume by id lifts a whole order, --carve-out only this part of it."
        )
    if lifted or carve_out:
        lines += [
            f"  {line}"
            for line in instance_lines(
                receipt, lambda i: after_resume(i, receipt["requested_at"]), progress=False
            )
        ]
    silent = silent_proxies(receipt)
    if lifted and silent:
        lines.append(f"Not confirmed yet by {listed(silent)}.")
    if lifted and any(i.get("state") == WAITING for i in receipt.get("instances", ())):
        lines.append(f"`haltwire show {lifted[0]}` says later which of them were seen since.")
    return "\n".join([*lines, *_similar(receipt)])


def order_text(kill: Json) -> str:
    """What was ordered, by whom and why, and what became of it."""
    line = f"{escape(kill['kill_id'])}: {escape(kill['mode'])} of {escape(kill['selector'])}, ordered by {escape(kill['actor'])} at {clock(kill['created_at'])}{_why(kill.get('reason'))}"
    return f"{line}\n{lifted_text(kill)}" if kill.get("lifted_at") else line


def lifted_text(kill: Json) -> str:
    """By whom and why an order was lifted."""
    return f"Lifted at {clock(kill['lifted_at'])} by {escape(kill['lifted_by'])}{_why(kill.get('lifted_reason'))}"


def verdict(receipt: Json, now: datetime, *, lifted: bool = False) -> str:
    """What is proven, in one sentence."""
    selector, because = escape(receipt["selector"]), receipt.get("unconfirmed_because")
    if receipt.get("durable") is False:
        did = "held" if receipt["mode"] == HOLD else "stopped"
        return f"NOT STORED: {selector} is {did} where this says so, but a restart would forget the order."
    if receipt.get("confirmed"):
        return _confirmed(receipt, selector, now, lifted)
    if because == NO_AGENT:
        return f"Ordered, but no agent by that name has been seen: {selector}."
    if because == NO_PROXY:
        return f"Ordered, but NOT PROVEN: no proxy is running that could stop {selector}."
    if because == OUTSIDE_PROXY:
        outside = [
            escape(i["instance"])
            for i in receipt.get("instances", ())
            if i.get("seen_at_proxy") is None
        ]
        return f"Ordered, but NOT PROVEN: {listed(outside)} of {selector} never came through a proxy, so its traffic may go around."
    silent = listed(silent_proxies(receipt)) or "a proxy"
    return f"Ordered, but NOT PROVEN for {selector}: no answer yet from {silent}."


def silent_proxies(receipt: Json) -> list[str]:
    """The proxies that have not answered."""
    proxies = receipt.get("proxies", ())
    return [f"proxy {escape(p['proxy_id'])}" for p in proxies if p["state"] == PENDING]


def _confirmed(receipt: Json, selector: str, now: datetime, lifted: bool) -> str:
    mode, took = receipt["mode"], receipt.get("halted_in_ms")
    when = "" if took is None else f" in {milliseconds(took)}"
    if mode == HOLD:
        frozen = "nothing moved" if lifted else "nothing moves"
        return f"Held {selector}{when}: frozen, {frozen}; {confirmed_by(receipt)}."
    if mode != DRAIN:
        return f"Stopped {selector}{when}: {confirmed_by(receipt)}."
    if not is_draining(receipt):
        cut = cut_at_deadline(receipt)
        end = (
            f"{count(cut, 'connection')} cut at the deadline" if cut else "nothing is open any more"
        )
        return f"Stopped {selector}{when}: drained, {end}; {confirmed_by(receipt)}."
    if lifted:
        return f"Drained {selector} only in part: the order was lifted before all had ended."
    live = added(receipt.get("proxies", ()), "connections_live")
    left, end = count(live, "connection") if live else "what is open", drain_end(receipt)
    if parse_time(end) <= now:
        return f"Draining {selector}, but NOT PROVEN that it has ended: {left} should have been cut at {due(end, now)}."
    return (
        f"Draining {selector}: new requests are refused; {left} may finish until {due(end, now)}."
    )


def _proof(receipt: Json, asked: str, lifted: bool) -> Iterable[str]:
    mode = receipt["mode"]
    if asked and asked != mode:
        yield f"You asked for a {asked}; a {escape(mode)} was in force before and stays."
    yield from proxy_lines(receipt, lifted=lifted)
    yield from instance_lines(receipt, lambda i: stopped(i, receipt, lifted=lifted))
    if totals := totals_text(receipt.get("totals") or {}):
        yield f"in total: {totals}"
    if receipt.get("escapable"):
        yield "It could take another instance name: some of its tokens are not bound to one. Kill the whole agent to be sure."
    unseen = (receipt.get("matched") or {}).get("agents") == 0
    if unseen and receipt.get("unconfirmed_because") != NO_AGENT:
        yield "Besides, no agent by that name has been seen."
    yield from _similar(receipt)


def _standing(receipt: Json, now: datetime) -> list[str]:
    kill_id, selector = escape(receipt["kill_id"]), escape(receipt["selector"])
    does = "lets every byte go on" if receipt["mode"] == HOLD else "lifts it"
    lines = [f"In force as {kill_id} for {selector}; `haltwire resume {kill_id}` {does}."]
    if receipt["mode"] == HOLD and receipt.get("hold_until"):
        lines.append(f"It becomes a cut at {due(receipt['hold_until'], now)}.")
    if receipt.get("expires_at"):
        lines.append(f"It is lifted by itself at {due(receipt['expires_at'], now)}.")
    return lines


def _similar(receipt: Json) -> list[str]:
    names = [escape(name) for name in receipt.get("did_you_mean", ())]
    return [f"Did you mean {' or '.join(names)}?"] if names else []


def _why(reason: object) -> str:
    return f": {escape(reason)}" if reason else "."
