"""What people read: rows as a table, times as "3 s ago", a receipt as plain words. Pure: `now` is an argument.

Whatever agents or other people wrote passes through `escape` on its way to a terminal.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from haltwire.wire.codec import parse_time

Json = Mapping[str, Any]
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"Categories that move the cursor, reorder the line or cannot be seen."
_WIDEST_METADATA = 60


def escape(text: object) -> str:
    """The text, with everything that could steer a terminal spelled out."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(
        c if unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode()
        for c in plain
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns, two spaces apart."""
    cells = [list(headers), *([escape(cell) for cell in row] for row in rows)]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    )


def ago(moment: str | None, now: datetime) -> str:
    """How long ago a time was."""
    if not moment:
        return "never"
    seconds = (now - parse_time(moment)).total_seconds()
    return "just now" if seconds < 1 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """A time span in its largest fitting unit."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length or (unit == "d" and seconds >= length):
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def clock(moment: str | None) -> str:
    """A time as it is written in incident reports."""
    return parse_time(moment).strftime("%Y-%m-%d %H:%M:%SZ") if moment else "unknown"


def facts(metadata: object) -> str:
    """What an agent said of itself, on one line."""
    if not isinstance(metadata, Mapping) or not metadata:
        return ""
    line = " ".join(f"{key}={_fact(value)}" for key, value in metadata.items())
    return line if len(line) <= _WIDEST_METADATA else f"{line[: _WIDEST_METADATA - 1]}…"


def kill_text(receipt: Json) -> str:
    """The receipt of a kill, for a person under stress: the verdict first, then its proof, then what to reconcile."""
    selector, kill_id = escape(receipt["selector"]), escape(receipt["kill_id"])
    lines = [_verdict(receipt)]
    lines += [f"  {line}" for line in _proxy_lines(receipt)]
    for instance in receipt.get("instances", ()):
        lines += _instance_lines(instance, len({i["agent_uri"] for i in receipt["instances"]}) > 1)
    lines += [f"  {line}" for line in _totals_lines(receipt.get("totals") or {})]
    if receipt.get("escapable"):
        lines.append(
            "  It could take another instance name: some of its tokens are not bound to one. Kill the whole agent to be sure."
        )
    unseen = (receipt.get("matched") or {}).get("agents") == 0
    if unseen and receipt.get("unconfirmed_because") != "no_agent":
        lines.append("  Besides, no agent by that name has been seen.")
    if receipt.get("did_you_mean"):
        lines.append(f"  Did you mean {' or '.join(map(escape, receipt['did_you_mean']))}?")
    lines.append(f"In force as {kill_id} for {selector}; `haltwire resume {kill_id}` lifts it.")
    return "\n".join(lines)


def resume_text(receipt: Json, carve_out: bool = False) -> str:
    """The receipt of a resume: what is lifted, and what still stops it."""
    selector = escape(receipt["selector"])
    lifted = [escape(kill_id) for kill_id in receipt.get("lifted", ())]
    still = [escape(kill_id) for kill_id in receipt.get("still_killed_by", ())]
    lines = []
    if lifted:
        lines.append(f"Resumed {selector}: lifted {_and(lifted)}.")
    elif carve_out and not still:
        lines.append(f"Resumed {selector}: excepted from every order that goes on stopping others.")
    elif not still:
        lines.append(f"Nothing was stopping {selector}.")
    if still:
        lines.append(
            f"{selector} is still stopped by {_and(still)}: resume by id lifts a whole order, --carve-out only this part of it."
        )
    waiting = _in_state(receipt, "pending")
    if lifted and waiting:
        lines.append(f"Not confirmed yet by {_and(waiting)}.")
    if receipt.get("did_you_mean"):
        lines.append(f"Did you mean {' or '.join(map(escape, receipt['did_you_mean']))}?")
    return "\n".join(lines)


def _verdict(receipt: Json) -> str:
    selector, because = escape(receipt["selector"]), receipt.get("unconfirmed_because")
    if receipt.get("durable") is False:
        return f"NOT STORED: {selector} is stopped where this says so, but a restart would forget the order."
    if receipt.get("confirmed"):
        taken = receipt.get("halted_in_ms")
        when = "" if taken is None else f" in {_milliseconds(taken)}"
        return f"Stopped {selector}{when}: every proxy has confirmed it."
    if because == "no_agent":
        return f"Ordered, but no agent by that name has been seen: {selector}."
    if because == "no_proxy":
        return f"Ordered, but NOT PROVEN: no proxy is running that could stop {selector}."
    if because == "outside_proxy":
        outside = [
            escape(i["instance"])
            for i in receipt.get("instances", ())
            if i.get("seen_at_proxy") is None
        ]
        return f"Ordered, but NOT PROVEN: {_and(outside)} of {selector} never came through a proxy, so its traffic may go around."
    waiting = _in_state(receipt, "pending")
    return (
        f"Ordered, but NOT PROVEN for {selector}: no answer yet from {_and(waiting) or 'a proxy'}."
    )


def _proxy_lines(receipt: Json) -> Iterable[str]:
    for proxy in receipt.get("proxies", ()):
        name = f"proxy {escape(proxy['proxy_id'])}"
        state = proxy["state"]
        if state == "applied":
            cut = proxy.get("connections_cut")
            # Of an agent that nobody has seen, nothing was stopped yet.
            did = "in force" if receipt.get("unconfirmed_because") == "no_agent" else "stopped it"
            parts = [f"{did} after {_milliseconds(proxy.get('latency_ms'))}"]
            parts.append("cut: not known" if cut is None else f"cut {_count(cut, 'connection')}")
            yield f"{name}: {', '.join(parts)}"
        elif state == "gone":
            yield f"{name}: has ended, with all its connections"
        elif state == "pending":
            yield f"{name}: NO ANSWER YET"
        else:
            yield f"{name}: {escape(state)}"


def _instance_lines(instance: Json, with_agent: bool) -> list[str]:
    name = escape(instance["instance"])
    if with_agent:
        name = f"{escape(instance['agent_uri'])} {name}"
    if instance.get("seen_at_proxy") is None:
        head = "never seen at a proxy"
    else:
        cut = instance.get("connections_cut")
        head = "cut: not known" if cut is None else f"cut {_count(cut, 'connection')}"
    if instance.get("last_byte_at"):
        head += (
            f", last byte at {parse_time(instance['last_byte_at']).strftime('%H:%M:%S.%f')[:-3]}Z"
        )
    lines = [f"  instance {name}: {head}"]
    if said := facts(instance.get("metadata")):
        lines.append(f"    last said: {escape(said)}")
    since = instance.get("since_metadata")
    if since is not None:
        lines.append(f"    {_since(since, bool(instance.get('metadata')))}")
    lines += [f"    in flight: {_in_flight(request)}" for request in instance.get("in_flight", ())]
    return lines


def _since(since: Json, said_something: bool) -> str:
    when = "since then" if said_something else "in all"
    done, uncertain = since.get("completed"), since.get("uncertain")
    if done is None:
        return f"{when}: requests not read (tunnel)"
    more = "" if not uncertain else f", {uncertain} uncertain: look there before sending again"
    return f"{when}: {_count(done, 'request')} completed{more}"


def _in_flight(request: Json) -> str:
    path = request.get("path")
    what = f"{escape(request['method'])} {escape(request['host'])}"
    what += escape(path) if path is not None else " (path not read: tunnel)"
    up, acknowledged = request.get("bytes_up"), request.get("bytes_up_acked")
    if up is None:
        sent = "sent: not read (tunnel)"
    elif up == 0:
        sent = "no body"
    elif acknowledged is None:
        sent = f"{up} bytes sent"
    else:
        sent = f"{acknowledged} of {up} bytes received there"
    word = request.get("sent", "unknown")
    return f"{what}, {sent}" + ("" if word == "unknown" else f", sent {escape(word)}")


def _totals_lines(totals: Json) -> Iterable[str]:
    done, remaining = totals.get("done"), totals.get("remaining")
    if done is None and remaining is None:
        return
    unit = f" {escape(totals['unit'])}" if totals.get("unit") else ""
    parts = [f"{_number(done)}{unit} done"] if done is not None else []
    parts.append("remaining: not known" if remaining is None else f"{_number(remaining)} remaining")
    yield f"in total: {', '.join(parts)}"


def _in_state(receipt: Json, state: str) -> list[str]:
    return [
        f"proxy {escape(p['proxy_id'])}" for p in receipt.get("proxies", ()) if p["state"] == state
    ]


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "an unknown time"
    return f"{value:.1f} ms" if value < 100 else f"{value / 1000:.2f} s"


def _fact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
