"""A kill as one Markdown page for the incident channel: who, why, when, proof, what to reconcile, audit hashes.

Pure: `now` is an argument. Whatever agents or other people wrote stands in code spans, in which
Markdown knows no link, no HTML, no mention; `quoted` keeps anybody from ending one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from haltwire.wire.codec import format_time
from haltwire.wire.orders import DRAIN, HOLD
from haltwire.wire.receipts import (
    APPLIED,
    FENCED,
    GONE,
    NO_AGENT,
    NO_PROXY,
    OUTSIDE_PROXY,
    PENDING,
)

from haltwire_cli.output import count, due, escape, facts, milliseconds, span, stamp
from haltwire_cli.receipt_lines import (
    after_resume,
    cut_at_deadline,
    drain_end,
    is_draining,
    sent_text,
    totals_text,
)

Json = Mapping[str, Any]
Column = tuple[str, Callable[[Json], str]]
NOT_READ, NOT_KNOWN = "not read (tunnel)", "not known"
WIDEST_SAID = 300
_UNCERTAIN = ("whole", "partly", "unknown")
"A request that was sent like this may have been processed."
_BECAUSE = {
    NO_AGENT: "no agent by that name has been seen.",
    NO_PROXY: "no proxy was running that could stop it.",
    OUTSIDE_PROXY: "an instance never came through a proxy, so its traffic may go around.",
}
_STATES = {
    APPLIED: "confirmed",
    PENDING: "SILENT: no answer",
    FENCED: "silent: its lease expired, it passes nothing without one",
    GONE: "ended, with all its connections",
}


def report_text(document: Json, now: datetime) -> str:
    """The page about what `GET /v1/mesh/kills/{id}` has answered."""
    kill, receipt = document["kill"], document.get("receipt")
    sections: list[tuple[str, Iterable[str]]] = [
        ("Resume", _resume(kill, document.get("resume"))),
        ("Notes", _notes(kill, document.get("notes") or ())),
        ("Audit log", [_table(_AUDIT, document.get("events") or ()) or "No event is known."]),
    ]
    if receipt:
        sections[:0] = [
            ("Proof", [_proof(receipt)]),
            ("Instances", _instances(receipt)),
            ("To reconcile", _reconcile(receipt)),
        ]
    return "\n\n".join(
        [
            f"# haltwire: {kill['mode']} of {quoted(kill['selector'])}",
            f"**{_verdict(kill, receipt, now)}** {_status(kill, now)}",
            "\n".join(f"- **{name}**: {value}" for name, value in _facts(kill, receipt)),
            *(part for title, parts in sections for part in (f"## {title}", *parts)),
            f"As of {stamp(format_time(now))}, by {quoted('haltwire report ' + kill['kill_id'])}.",
        ]
    )


def quoted(text: object) -> str:
    """Foreign text as a code span that nothing in it can end, on one line, also inside a table."""
    plain = escape(text).replace("`", "\\x60").replace("|", "\\x7c")
    return f"`{plain}`" if plain.strip() else "(empty)"


def _verdict(kill: Json, receipt: Json | None, now: datetime) -> str:
    if not receipt:
        return "NOT PROVEN: no receipt is stored."
    if not receipt.get("durable", True):
        return "NOT STORED: a restart would forget the order."
    if not receipt.get("confirmed"):
        because = _BECAUSE.get(receipt.get("unconfirmed_because") or "")
        return f"NOT PROVEN: {because or 'some proxies have not answered.'}"
    took = receipt.get("halted_in_ms")
    when = "" if took is None else f" in {milliseconds(took)}"
    if is_draining(receipt):
        if kill.get("lifted_at"):
            return "Drained only in part: the order was lifted before all had ended."
        return f"Draining: what was open may finish until {due(drain_end(receipt), now)}."
    if receipt["mode"] == HOLD:
        return f"Held{when}, {_confirmed_by(receipt)}: nothing moved."
    cut = cut_at_deadline(receipt) if receipt["mode"] == DRAIN else 0
    late = f" {count(cut, 'connection')} cut at the deadline." if cut else ""
    return f"Stopped{when}, {_confirmed_by(receipt)}.{late}"


def _confirmed_by(receipt: Json) -> str:
    silent = sum(proxy["state"] == FENCED for proxy in receipt.get("proxies", ()))
    if not silent:
        return "confirmed by every proxy"
    return f"confirmed by every proxy that has a lease ({silent} silent without one)"


def _status(kill: Json, now: datetime) -> str:
    if kill.get("lifted_at"):
        return f"Lifted at {stamp(kill['lifted_at'])} by {quoted(kill['lifted_by'])}."
    parts = ["In force."]
    if kill["mode"] == HOLD and kill.get("hold_until"):
        parts.append(f"It becomes a cut at {due(kill['hold_until'], now)}.")
    if kill.get("expires_at"):
        parts.append(f"It is lifted by itself at {due(kill['expires_at'], now)}.")
    return " ".join(parts)


def _facts(kill: Json, receipt: Json | None) -> Iterable[tuple[str, str]]:
    yield "Order", quoted(kill["kill_id"])
    yield "Who", quoted(kill["actor"])
    yield "Why", quoted(kill["reason"]) if kill.get("reason") else "no reason was given"
    grace = kill.get("grace_s") if kill["mode"] == DRAIN else None
    yield "Mode", kill["mode"] + ("" if grace is None else f", with {span(grace)} to finish")
    yield "Requested", stamp(kill["created_at"])
    if not receipt:
        return
    if receipt["requested_at"] != kill["created_at"]:
        yield "Requested again", stamp(receipt["requested_at"])
    halted, took = receipt.get("halted_at"), receipt.get("halted_in_ms")
    after = "" if took is None else f", {took:,.1f} ms after the request"
    yield "Halted", f"{stamp(halted)}{after}" if halted else "not proven"
    matched = receipt["matched"]
    yield (
        "Matched",
        f"{count(matched['agents'], 'agent')}, {count(matched['instances'], 'instance')}",
    )
    if receipt.get("escapable"):
        yield (
            "Escapable",
            "some of its tokens are not bound to an instance; killing the whole agent is sure",
        )


def _proof(receipt: Json) -> str:
    columns: list[Column] = [
        ("Proxy", lambda p: quoted(p["proxy_id"])),
        ("State", lambda p: _STATES.get(p["state"]) or quoted(p["state"])),
        (
            "After",
            lambda p: NOT_KNOWN if p.get("latency_ms") is None else milliseconds(p["latency_ms"]),
        ),
        *_moved(receipt["mode"]),
        ("Bytes that may still arrive, at most", _number("residual_bytes_max")),
    ]
    return _table(columns, receipt.get("proxies", ())) or "There was no proxy."


def _instances(receipt: Json) -> Iterable[str]:
    instances = receipt.get("instances", ())
    lost = any(instance.get("lost_while_held") for instance in instances)
    columns: list[Column] = [
        ("Instance", _name),
        (
            "Seen at a proxy",
            lambda i: stamp(i["seen_at_proxy"]) if i.get("seen_at_proxy") else "never",
        ),
        *_moved(receipt["mode"]),
        *([("Gave up while held", _number("lost_while_held"))] if lost else []),
        ("Last byte", lambda i: stamp(i.get("last_byte_at"))),
        ("Last said", _said),
        ("Completed since", lambda i: _since(i, "completed")),
        ("Uncertain since", lambda i: _since(i, "uncertain")),
    ]
    yield _table(columns, instances) or "None was known."
    if totals := totals_text(receipt.get("totals") or {}, quoted):
        yield f"In total: {totals}."


def _moved(mode: str) -> list[Column]:
    """What became of live connections."""
    if mode == HOLD:
        return [("Held", _number("connections_held"))]
    cut: Column = ("Cut", _number("connections_cut"))
    return [cut, ("Left", _number("connections_live"))] if mode == DRAIN else [cut]


def _reconcile(receipt: Json) -> Iterable[str]:
    instances = receipt.get("instances", ())
    requests = [{**flight, "by": i} for i in instances for flight in i.get("in_flight", ())]
    words = [request.get("sent", "unknown") for request in requests]
    uncertain = [request for request in requests if request.get("sent") != "none"]
    if uncertain:
        counts = ", ".join(f"{words.count(word)} {word}" for word in _UNCERTAIN)
        found = f"{count(len(uncertain), 'request')} ({counts})"
        if receipt["mode"] == HOLD:
            yield f"{found} frozen half-way; a resume lets them go on. Look there only for those that gave up."
        else:
            yield f"{found} may have been processed: look there before sending again."
        yield _table(_REQUEST, uncertain)
    else:
        yield "No proxy knows of a request that was interrupted half-way."
    if unsent := words.count("none"):
        yield f"Besides, {count(unsent, 'request')} had not begun to go out."
    since = [i["since_metadata"] for i in instances if i.get("since_metadata")]
    if any(row.get("completed") is None for row in since):
        yield f"Requests inside tunnels: {NOT_READ}."
    if any(proxy["state"] == FENCED for proxy in receipt.get("proxies", ())):
        yield "A silent proxy has not said what it interrupted, so there may be more."
    if receipt.get("unconfirmed_because"):
        yield "The order is not confirmed everywhere, so there may be more."


def _resume(kill: Json, resumed: Json | None) -> Iterable[str]:
    if not kill.get("lifted_at"):
        does = "lets every byte go on" if kill["mode"] == HOLD else "lifts the order"
        yield f"{quoted('haltwire resume ' + kill['kill_id'])} {does}."
        return
    why = f": {quoted(kill['lifted_reason'])}" if kill.get("lifted_reason") else "."
    yield f"Lifted at {stamp(kill['lifted_at'])} by {quoted(kill['lifted_by'])}{why}"
    if not resumed:
        return
    if still := resumed.get("still_killed_by"):
        yield f"Part of it is still stopped by {', '.join(map(quoted, still))}."
    if any(proxy["state"] == PENDING for proxy in resumed.get("proxies", ())):
        yield "Some proxies have not confirmed that they let it pass."
    since: Column = (
        "Since the resume",
        lambda i: after_resume(i, resumed["requested_at"], quoted) or NOT_KNOWN,
    )
    if instances := resumed.get("instances"):
        yield _table([("Instance", _name), since], instances)


def _notes(kill: Json, notes: Sequence[Json]) -> Iterable[str]:
    lines = [f"- {stamp(n['at'])} {quoted(n['actor'])}: {quoted(n['text'])}" for n in notes]
    yield "\n".join(lines) or f"None. {quoted(f'haltwire note {kill["kill_id"]} TEXT')} adds one."


def _table(columns: Sequence[Column], rows: Iterable[Json]) -> str:
    cells = [[cell(row) for _, cell in columns] for row in rows]
    heads = [[title for title, _ in columns], ["---"] * len(columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*heads, *cells]) if cells else ""


def _name(instance: Json) -> str:
    return quoted(f"{instance['agent_uri']}~{instance['instance']}")


def _said(instance: Json) -> str:
    said = facts(instance.get("metadata"), WIDEST_SAID)
    return quoted(said) if said else "nothing"


def _since(instance: Json, name: str) -> str:
    since = instance.get("since_metadata")
    if since is None:
        return NOT_KNOWN
    return NOT_READ if since.get(name) is None else f"{since[name]:,}"


def _number(name: str) -> Callable[[Json], str]:
    return lambda row: NOT_KNOWN if row.get(name) is None else f"{row[name]:,}"


_REQUEST: list[Column] = [
    ("Instance", lambda r: _name(r["by"])),
    ("Method", lambda r: quoted(r["method"])),
    ("Host", lambda r: quoted(r["host"])),
    ("Path", lambda r: NOT_READ if r.get("path") is None else quoted(r["path"])),
    ("Started", lambda r: stamp(r.get("started_at"))),
    ("Bytes", sent_text),
    ("Sent", lambda r: quoted(r.get("sent", "unknown"))),
]
_AUDIT: list[Column] = [
    ("Seq", lambda e: str(e["seq"])),
    ("Event", lambda e: quoted(e["event_type"])),
    ("At", lambda e: stamp(e["at"])),
    ("Actor", lambda e: quoted(e["actor"])),
    ("Hash", lambda e: quoted(e["hash"])),
]
