"""The audit chain finds every change by hand and names the first row that does not fit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from haltwire.wire.selectors import Selector
from haltwire_control.audit import GENESIS, EventRow, Head, Verifier, canonical, row_of
from haltwire_control.state import Actor, NewEvent
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def chain(*reasons: str | None) -> list[EventRow]:
    rows, previous = [], GENESIS
    for number, reason in enumerate(reasons, start=1):
        event = NewEvent(
            "kill.issued",
            NOW,
            Actor("key:ada", "Y1"),
            Selector.parse("agent://acme/prod/mailer~i-1"),
            reason,
            {"revision": number, "share": 0.25, "names": ["ä", '"']},
        )
        rows.append(row_of(event, number, f"E{number}", previous))
        previous = rows[-1].hash
    return rows


def head_of(rows: list[EventRow]) -> Head:
    return Head(len(rows), rows[-1].hash if rows else GENESIS)


def verify(rows, head):
    verifier = Verifier()
    verifier.add(rows)
    return verifier.finish(head)


def test_a_whole_chain_is_whole():
    rows = chain("a", None, "c")
    found = verify(rows, head_of(rows))
    assert (found.ok, found.events, found.head_hash) == (True, 3, rows[-1].hash)
    assert found.anchored is False


def test_an_empty_chain_is_whole():
    assert verify([], Head(0, GENESIS)).ok


def test_the_address_is_the_selector_and_the_agent_its_agent():
    (row,) = chain("a")
    assert row.agent_uri == "agent://acme/prod/mailer"
    assert row.address == "agent://acme/prod/mailer~i-1"


def test_anybody_can_recompute_a_hash_from_an_exported_line():
    """The rule stands in words: SHA-256 of the previous hash, a newline, and the canonical row without its hash."""
    (row,) = chain("a")
    exported = json.loads(json.dumps(row.document()))
    claimed = exported.pop("hash")
    assert hashlib.sha256(f"{GENESIS}\n{canonical(exported)}".encode()).hexdigest() == claimed


CHANGED = {
    "seq": 9,
    "event_id": "E9",
    "event_type": "resume.issued",
    "agent_uri": None,
    "address": "agent://acme/prod/other",
    "actor": "key:eve",
    "actor_id": None,
    "reason": "",
    "details": '{"revision":3}',
    "created_at": "2026-11-22T09:31:00.000000Z",
    "hash": "0" * 64,
}


@pytest.mark.parametrize("column", CHANGED)
def test_a_change_in_any_column_is_found_at_its_row(column):
    rows = chain("a", None, "c")
    bad = [rows[0], replace(rows[1], **{column: CHANGED[column]}), rows[2]]
    found = verify(bad, head_of(rows))
    assert (found.ok, found.first_bad_seq) == (False, 2)


ODD = {
    "spaces in details": {"details": '{"names": ["ä"]}'},
    "details that are no JSON": {"details": "{"},
    "a blob where text was": {"reason": b"c"},
    "no text at all": {"details": None},
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_a_row_without_a_form_is_bad_and_no_error(change):
    rows = chain("a", "b")
    assert verify([rows[0], replace(rows[1], **change)], head_of(rows)).first_bad_seq == 2


def test_a_deleted_row_is_named():
    rows = chain("a", "b", "c")
    assert verify([rows[0], rows[2]], head_of(rows)).first_bad_seq == 2


def test_a_cut_tail_is_named():
    rows = chain("a", "b", "c")
    assert verify(rows[:2], head_of(rows)).first_bad_seq == 3


def test_an_added_row_is_named():
    rows = chain("a", "b", "c")
    assert verify(rows, head_of(rows[:2])).first_bad_seq == 3


def test_a_chain_written_anew_does_not_fit_its_head():
    found = verify(chain("x", "y"), head_of(chain("a", "b")))
    assert (found.ok, found.first_bad_seq) == (False, 2)


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), TEXT), min_size=1, max_size=8), st.data())
def test_any_text_is_kept_and_any_change_of_it_found(reasons, data):
    rows = chain(*reasons)
    assert verify(rows, head_of(rows)).ok
    place = data.draw(st.integers(0, len(rows) - 1))
    other = data.draw(st.one_of(st.none(), TEXT).filter(lambda text: text != reasons[place]))
    bad = [replace(r, reason=other) if i == place else r for i, r in enumerate(rows)]
    assert verify(bad, head_of(rows)).first_bad_seq == place + 1
