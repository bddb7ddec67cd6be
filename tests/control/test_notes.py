"""Notes: kept as written, and the first of them is the reason that a hurried kill left out."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from haltwire.wire.selectors import Selector
from haltwire_control.kills import Issue, Resume, issue, resume
from haltwire_control.notes import note
from haltwire_control.state import Actor, Lifting, Note, NotThereError, State

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
ADA, BOB = Actor("key:ada", "Y1"), Actor("key:bob", "Y2")
MAILER = Selector.parse("agent://acme/prod/mailer")


def killed(reason: str | None = None) -> State:
    return issue(State("e"), Issue(MAILER, ADA, reason), NOW, "K1").state


def test_a_note_becomes_the_reason_that_was_missing_and_the_proof_stands():
    before = killed()
    change = note(before, "K1", "a broken link " * 100, BOB, NOW)
    (order,) = change.state.orders
    assert order.kill.reason == ("a broken link " * 100)[:1000]
    assert (order.kill.actor, order.changed_revision) == ("key:ada", before.revision)
    assert (change.delta.previous, change.delta.revision, change.delta.kills) == (
        1,
        2,
        (order.kill,),
    )
    kept = Note("K1", NOW, "key:bob", "a broken link " * 100)
    assert change.outcome == kept
    assert change.put == (order, kept)
    (event,) = change.events
    assert (event.event_type, event.actor, event.selector) == ("kill.noted", BOB, MAILER)
    assert (event.reason, event.details, event.kills) == (kept.text, {"kill_id": "K1"}, ("K1",))


def test_a_reason_that_was_given_stays():
    before = killed("a broken link")
    change = note(before, "K1", "it was the other link", BOB, NOW)
    assert (change.state, change.delta) == (before, None)
    assert change.put == (change.outcome,)


def test_a_lifted_kill_can_be_explained_and_no_proxy_hears_of_it():
    before = resume(killed(), Resume(ADA, MAILER), NOW).state
    change = note(before, "K1", "a broken link", BOB, NOW)
    assert change.delta is None
    assert [order.kill.reason for order in change.state.lifted] == ["a broken link"]
    assert change.state.revision == before.revision


def test_a_kill_lifted_long_ago_comes_from_the_store():
    (order,) = killed().orders
    lifted = replace(order, lifted=Lifting(2, NOW, "key:ada", None))
    change = note(State("e", 9), "K1", "a broken link", BOB, NOW, lifted)
    assert change.put[0].kill.reason == "a broken link"
    assert change.put[0].lifted == lifted.lifted
    assert (change.state, change.delta) == (State("e", 9), None)


@pytest.mark.parametrize("remembered", [None, killed().orders[0]])
def test_what_is_not_there_cannot_be_noted(remembered):
    """Nor can a row that says it is in force while the state does not have it."""
    with pytest.raises(NotThereError, match="K1"):
        note(State("e"), "K1", "x", BOB, NOW, remembered)
