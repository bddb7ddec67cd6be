"""The audit log: what happened, and whether what it says is what was written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, BinaryIO

import click
from haltwire.wire.codec import parse_time

from haltwire_cli.anchor import compare, lines_of, read_export
from haltwire_cli.api import TIMEOUT_S, Api, Refused, with_api
from haltwire_cli.failures import FAILED, Failure
from haltwire_cli.names import selector_of
from haltwire_cli.options import duration, json_option
from haltwire_cli.output import clock, escape, facts

Event = Mapping[str, Any]
Asked = Mapping[str, str | None]
PAGE = 500
FOLLOW_S = 25
RETRY_S = 1.0
_NOT_SHOWN = ("revision",)
_PATH, _AUDIT = "/v1/mesh/events", "/v1/mesh/audit"


def since(text: str) -> datetime:
    """A kind of value: a time, or how long ago."""
    try:
        return parse_time(text)
    except ValueError:
        return datetime.now(timezone.utc) - timedelta(seconds=duration()(text))


@click.command()
@click.argument("selector", required=False)
@click.option("--follow", is_flag=True, help="Go on printing what happens, until Ctrl-C.")
@click.option(
    "--since",
    "start",
    type=since,
    metavar="TIME",
    help="Only later ones: 10m, 2h, or 2026-11-22T09:30:00Z.",
)
@click.option("--type", "event_type", metavar="TYPE", help="Only this type, such as kill.issued.")
@click.option(
    "--limit",
    type=click.IntRange(1, 500),
    default=50,
    show_default=True,
    help="How many of the latest to print.",
)
@json_option
@with_api
def events(
    api: Api,
    selector: str | None,
    follow: bool,
    start: datetime | None,
    event_type: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print what happened, oldest first."""
    meant = str(selector_of(api, selector)) if selector else None
    asked = {"selector": meant, "event_type": event_type}
    show: Callable[[Event], str] = _as_json if as_json else _as_line
    if not follow and not start:
        answer = api.get(_PATH, {**asked, "limit": limit})
        rows = _in_order(answer.document)
        click.echo(answer.text if as_json else "\n".join(map(show, rows)), nl=not as_json)
        return
    try:
        if start:
            last = _after(api, _seq_before(api, start), asked, show)
        else:
            # In this order, so that what happens in between is printed by the second or the third.
            last = _last_seq(api)
            rows = _in_order(api.get(_PATH, {**asked, "limit": limit}).document)
            last = max([last, *(event["seq"] for event in rows)])
            _print(rows, show)
        if follow:
            _follow(api, last, asked, show)
    except KeyboardInterrupt:
        sys.exit(0)


@click.group()
def audit() -> None:
    """The audit log as evidence."""


@audit.command("verify")
@click.option(
    "--against",
    type=click.File("rb"),
    metavar="FILE",
    help="What `audit export` wrote earlier, kept where nobody who can write the data directory can: its events must all be in the log as they were.",
)
@json_option
@with_api
def verify(api: Api, against: BinaryIO | None, as_json: bool) -> None:
    """Check that no event was changed, removed or added by hand; exit code 1 when one was."""
    kept = read_export(against) if against else None
    answer = api.get(f"{_AUDIT}/verify", timeout_s=300)
    found = dict(answer.document)
    anchor = compare(kept, lines_of(api.stream(f"{_AUDIT}/export"))) if kept else None
    if anchor:
        found |= {
            "ok": bool(found.get("ok")) and anchor.is_same,
            "anchored": anchor.is_same,
            "anchored_to": anchor.last_same,
            "first_different_seq": anchor.first_different,
        }
    if as_json:
        click.echo(json.dumps(found) if anchor else answer.text.rstrip("\n"))
    elif answer.document.get("ok"):
        click.echo(f"{found['events']:,} events, each one as it was written.")
        click.echo(f"The last one's hash is {escape(found['head_hash'])}.")
        if anchor and anchor.is_same:
            click.echo(
                f"anchored up to event {anchor.last_same:,}: up to there it is the log that was exported."
            )
        elif not found.get("anchored") and not anchor:
            click.echo(
                "unanchored: that hash is kept nowhere else, so whoever rewrites the whole file can forge it. Keep what `haltwire audit export` writes elsewhere, and check with --against."
            )
    else:
        click.echo(
            f"haltwire: the audit log is NOT as it was written: event {found.get('first_bad_seq')} is the first that does not fit; those before it do.",
            err=True,
        )
    if anchor and not anchor.is_same and not as_json:
        click.echo(
            f"haltwire: the audit log is NOT the one that was exported: event {anchor.first_different} was {anchor.how} since. It was written anew from there on, or the file is of another haltwire.",
            err=True,
        )
    sys.exit(0 if found.get("ok") else FAILED)


@audit.command("export")
@with_api
def export(api: Api) -> None:
    """Write all events to stdout, one JSON object per line, oldest first."""
    out = sys.stdout.buffer
    for piece in api.stream(f"{_AUDIT}/export"):
        out.write(piece)
    out.flush()


def _follow(api: Api, after: int, asked: Asked, show: Callable[[Event], str]) -> None:
    lost = False
    while True:
        try:
            answer = api.get(
                _PATH, {**asked, "after": after, "follow_s": FOLLOW_S}, FOLLOW_S + TIMEOUT_S
            )
        except Refused:
            raise
        except Failure as failure:
            if not lost:
                failure.show()
            lost = True
            time.sleep(RETRY_S)  # a restarted `up` comes back
            continue
        lost = False
        after = answer.document["next_after"]
        _print(_in_order(answer.document), show)


def _after(api: Api, after: int, asked: Asked, show: Callable[[Event], str]) -> int:
    """Print all after this seq; the seq to go on from."""
    while True:
        document = api.get(_PATH, {**asked, "after": after, "limit": PAGE}).document
        _print(_in_order(document), show)
        if document["next_after"] == after:
            return after
        after = document["next_after"]


def _seq_before(api: Api, start: datetime) -> int:
    """The seq of the last event before a time: seqs have no gaps, so halving finds it."""
    low, high = 0, _last_seq(api)
    while low < high:
        middle = (low + high) // 2
        rows = _in_order(api.get(_PATH, {"after": middle, "limit": 1}).document)
        if rows and parse_time(rows[0]["created_at"]) < start:
            low = rows[0]["seq"]
        else:
            high = middle
    return low


def _last_seq(api: Api) -> int:
    rows = _in_order(api.get(_PATH, {"limit": 1}).document)
    return rows[-1]["seq"] if rows else 0


def _print(rows: list[Event], show: Callable[[Event], str]) -> None:
    for event in rows:
        click.echo(show(event))
    sys.stdout.flush()


def _in_order(document: Mapping[str, Any]) -> list[Event]:
    return sorted(document.get("events", ()), key=lambda event: event["seq"])


def _as_json(event: Event) -> str:
    return json.dumps(event, ensure_ascii=False)


def _as_line(event: Event) -> str:
    words = [
        clock(event["created_at"]),
        f"{event['event_type']:<17}",
        event.get("address") or event.get("agent_uri") or "-",
        f"by {event['actor']}",
    ]
    if event.get("reason"):
        words.append(f"because: {event['reason']}")
    details = {k: v for k, v in (event.get("details") or {}).items() if k not in _NOT_SHOWN}
    return "  ".join([*map(escape, words), escape(facts(details))]).rstrip()
