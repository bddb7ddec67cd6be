"""Tokens, keys and proxies as pure steps."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from haltwire.wire.selectors import Selector
from haltwire_control import access
from haltwire_control.state import (
    Actor,
    Change,
    ConflictError,
    Key,
    NotThereError,
    ProxyRecord,
    Recovery,
    RecoveryNeededError,
    State,
    Token,
)

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
ADA = Actor("key:ada", "Y1")
TOKEN = Token("T1", "d1", Selector.parse("agent://acme/prod/mailer"), None, NOW, "key:ada")
ADMIN = Key("Y1", "d2", "admin", "admin", NOW, "system:control")
PROXY = ProxyRecord("w-1", "box", "boot", 7, "pid:[1]", 100, "1", NOW)


def types(change) -> list[str]:
    return [event.event_type for event in change.events]


def test_a_token_has_a_revision_because_proxies_must_know_it():
    change = access.create_token(State("e", 4), TOKEN, ADA)
    assert change.state.revision == change.delta.revision == 5
    assert change.delta.tokens == (TOKEN.rule,)
    assert change.state.tokens == {"d1": TOKEN}
    assert types(change) == ["token.created"]


def test_a_revoked_token_is_gone_from_the_state_and_kept_in_the_store():
    state = access.create_token(State("e"), TOKEN, ADA).state
    change = access.revoke_token(state, "T1", ADA, NOW)
    assert change.delta.revoked == ("T1",)
    assert change.state.tokens == {}
    assert change.put[0].revoked_by == "key:ada"
    assert types(change) == ["token.revoked"]


def test_a_key_has_no_revision():
    change = access.create_key(State("e", 4), ADMIN, ADA)
    assert change.state.revision == 4
    assert change.delta is None
    assert types(change) == ["key.created"]


def test_events_hold_no_digest():
    change = access.create_key(State("e"), ADMIN, ADA)
    assert "d2" not in str(change.events)


REFUSED = {
    "a token that is not there": (
        lambda s: access.revoke_token(s, "T9", ADA, NOW),
        NotThereError,
        "T9",
    ),
    "a key that is not there": (
        lambda s: access.revoke_key(s, "eve", ADA, NOW),
        NotThereError,
        "eve",
    ),
    "a name that is taken": (
        lambda s: access.create_key(s, replace(ADMIN, digest="d3", key_id="Y2"), ADA),
        ConflictError,
        "admin",
    ),
    "the last admin key": (
        lambda s: access.revoke_key(s, "admin", ADA, NOW),
        ConflictError,
        "last",
    ),
}


@pytest.mark.parametrize(("step", "error", "names"), REFUSED.values(), ids=REFUSED)
def test_steps_that_are_refused(step, error, names):
    state = access.create_key(State("e"), ADMIN, ADA).state
    with pytest.raises(error, match=names):
        step(state)


@pytest.mark.parametrize("named", ["Y2", "bob"])
def test_a_key_is_revoked_by_id_or_name(named):
    state = access.create_key(State("e"), ADMIN, ADA).state
    bob = replace(ADMIN, key_id="Y2", digest="d3", name="bob")
    change = access.revoke_key(access.create_key(state, bob, ADA).state, named, ADA, NOW)
    assert list(change.state.keys) == ["d2"]
    assert types(change) == ["key.revoked"]


def test_a_proxy_counts_until_its_process_ends():
    state = access.note_proxy(State("e"), PROXY, NOW, ADA).state
    other = replace(PROXY, started_ticks=101)
    assert access.end_proxy(state, other, NOW).state == state
    change = access.end_proxy(state, PROXY, NOW)
    assert change.state.proxies == {}
    assert change.put[0].gone_at == NOW


def test_a_name_that_may_still_be_in_use_is_not_taken_over():
    """A frozen worker of an earlier start has the name of its successor, and may wake up."""
    state = access.note_proxy(State("e"), PROXY, NOW, ADA).state
    other = replace(PROXY, pid=8)
    state = access.note_proxy(state, other, NOW, ADA).state
    assert {name: p.pid for name, p in state.proxies.items()} == {"w-1": 7, "w-1.8": 8}


def test_copies_of_one_container_take_no_name_from_each_other():
    """Before, the third took the second one's name, and no kill counted the second any more."""
    copies = [replace(PROXY, pid_namespace=f"pid:[{number}]") for number in range(4)]
    state = State("e")
    for copy in copies:
        state = access.note_proxy(state, copy, NOW, ADA).state
    assert list(state.proxies) == ["w-1", "w-1.7", "w-1.7.2", "w-1.7.3"]
    assert {one.process for one in state.proxies.values()} == {one.process for one in copies}


def test_a_proxy_that_comes_back_keeps_its_name():
    state = access.note_proxy(State("e"), PROXY, NOW, ADA).state
    assert list(access.note_proxy(state, PROXY, NOW, ADA).state.proxies) == ["w-1"]


def test_a_lost_link_is_only_an_event():
    state = access.note_proxy(State("e"), PROXY, NOW, ADA).state
    change = access.lose_proxy(state, "w-1", "silent", NOW)
    assert change.state == state
    assert types(change) == ["proxy.lost"]


def test_only_a_longer_lease_is_noted():
    change = access.note_lease(State("e", longest_lease_ms=1000), 5000)
    assert change.state.longest_lease_ms == 5000
    assert [record.lease_ms for record in change.put] == [5000]
    assert change.delta is None, "proxies hear it with their leases"
    assert access.note_lease(change.state, 1000) == Change(change.state, None)


def test_no_token_is_made_while_a_recovery_waits():
    waiting = State("e", 4, recovery=Recovery("R1", NOW, "why", 0))
    with pytest.raises(RecoveryNeededError):
        access.create_token(waiting, TOKEN, ADA)
    assert access.revoke_token(replace(waiting, tokens={"d1": TOKEN}), "T1", ADA, NOW).delta
