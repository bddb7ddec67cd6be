"""A write under an Idempotency-Key is done once, whatever became of its answer.

Taken out to see these tests fail: the look at `state.attempts` in `Once.guard`: the second kill after a
resume stopped the agent again, and a second token was made. The row of `attempts` in `schema.write`: the
retry after the server's death was done again.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from haltwire_control.idempotency import (
    KEPT,
    KEPT_MOST,
    KeyReusedError,
    Once,
    Replayed,
    guarded,
    once_of,
)
from haltwire_control.state import Actor, Change, State
from support.control import running_control

MAILER = "agent://acme/prod/mailer"
NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
ADA, BOB = Actor("key:ada", "Y1"), Actor("key:bob", "Y2")


def step(state: State) -> Change[str]:
    return Change(state, f"made at {state.revision}")


def done(state: State, once: Once):
    return guarded(once, step, lambda change: change.outcome)(state)


def test_a_step_is_done_the_first_time_and_remembered_with_what_it_made():
    once = once_of("a", ADA, "POST", "/x", {"n": 1}, NOW)
    first = done(State("e", 7), once)
    assert first.outcome == "made at 7"
    again = done(first.state, once)
    assert isinstance(again.outcome, Replayed)
    assert again.outcome.attempt.reference == "made at 7"
    assert (again.put, again.events, again.state) == ((), (), first.state)


def test_nothing_of_what_was_sent_is_kept():
    once = once_of("my-key", ADA, "POST", "/x", {"reason": "secret words"}, NOW)
    kept = repr(done(State("e"), once).put)
    assert "my-key" not in kept
    assert "secret words" not in kept


OTHERS = {
    "another body": ("a", ADA, "/x", {"n": 2}),
    "another route": ("a", ADA, "/y", {"n": 1}),
}


@pytest.mark.parametrize(("key", "actor", "path", "body"), OTHERS.values(), ids=OTHERS)
def test_another_request_under_the_key_is_refused(key, actor, path, body):
    state = done(State("e"), once_of("a", ADA, "POST", "/x", {"n": 1}, NOW)).state
    with pytest.raises(KeyReusedError):
        done(state, once_of(key, actor, "POST", path, body, NOW))


def test_another_callers_key_is_another_key():
    state = done(State("e"), once_of("a", ADA, "POST", "/x", {"n": 1}, NOW)).state
    assert done(state, once_of("a", BOB, "POST", "/x", {"n": 1}, NOW)).outcome == "made at 0"


def test_quotes_as_in_the_draft_are_not_part_of_the_key():
    plain, quoted = (once_of(k, ADA, "POST", "/x", None, NOW) for k in ("k-1", '"k-1"'))
    assert plain == quoted


def test_a_key_is_forgotten_after_a_day():
    first = once_of("a", ADA, "POST", "/x", {}, NOW)
    state = done(State("e"), first).state
    late = once_of("a", ADA, "POST", "/x", {}, NOW + KEPT + timedelta(seconds=1))
    assert done(state, late).outcome == "made at 0"


def test_keys_beyond_the_most_push_out_the_oldest():
    state = State("e")
    for number in range(KEPT_MOST + 1):
        state = done(state, Once(str(number), "r", NOW)).state
    assert len(state.attempts) == KEPT_MOST
    assert "0" not in state.attempts
    assert str(KEPT_MOST) in state.attempts


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\x7f", "ä"])
def test_what_is_no_key(key):
    with pytest.raises(ValueError, match="Idempotency-Key"):
        once_of(key, ADA, "POST", "/x", {}, NOW)


async def ask(control, key, path="/v1/mesh/kill", body=None, method="POST"):
    return await control.call(method, path, body, Idempotency_Key=key)


async def test_a_kill_asked_for_again_after_a_resume_stops_nobody(control, worker):
    """Before, it was answered with the first receipt, 200 and confirmed, of an agent that went on."""
    first = await ask(control, "k", body={"selector": MAILER})
    again = await ask(control, "k", body={"selector": MAILER})
    assert again.body == first.body
    assert [p["state"] for p in first.body["proxies"]] == ["applied"]
    await control.resume(MAILER)
    late = await ask(control, "k", body={"selector": MAILER})
    assert (late.status, late.body["error"]["code"]) == (409, "already_done")
    assert f"{first.body['kill_id']} was ordered" in late.body["error"]["message"]
    assert (await control.call("GET", "/v1/mesh/kills")).body["kills"] == []
    assert (await control.event_types()).count("kill.issued") == 1


async def test_a_kill_asked_for_again_waits_for_its_proof(control):
    first = await ask(control, "k", body={"selector": MAILER, "wait_s": 0})
    assert first.body["unconfirmed_because"] == "no_proxy"
    again = await ask(control, "k", body={"selector": MAILER, "wait_s": 0})
    assert again.body["kill_id"] == first.body["kill_id"]
    assert again.body["requested_at"] == first.body["requested_at"]


async def test_a_resume_asked_for_again_lifts_no_later_kill(control, worker):
    await control.kill(MAILER)
    first = await ask(control, "r", "/v1/mesh/resume", {"selector": MAILER})
    assert len(first.body["lifted"]) == 1
    await control.kill(MAILER)
    again = await ask(control, "r", "/v1/mesh/resume", {"selector": MAILER})
    assert again.body["lifted"] == first.body["lifted"]
    assert len((await control.call("GET", "/v1/mesh/kills")).body["kills"]) == 1


async def test_a_resume_that_lifted_nothing_lifts_nothing_later(control, worker):
    first = await ask(control, "r", "/v1/mesh/resume", {"selector": MAILER})
    assert (first.status, first.body["lifted"]) == (200, [])
    kill_id = (await control.kill(MAILER)).body["kill_id"]
    again = await ask(control, "r", "/v1/mesh/resume", {"selector": MAILER})
    assert (again.status, again.body["lifted"]) == (200, [])
    assert again.body["still_killed_by"] == [kill_id]


async def test_a_secret_is_not_said_twice(control):
    for path, body, field in (
        ("/v1/tokens", {"selector": MAILER}, "token_id"),
        ("/v1/keys", {"name": "ada", "role": "viewer"}, "key_id"),
    ):
        made = (
            await ask(control, "t", path, body)
            if field == "token_id"
            else await ask(control, "u", path, body)
        )
        key = "t" if field == "token_id" else "u"
        again = await ask(control, key, path, body)
        assert (made.status, again.status) == (201, 409)
        assert again.body["error"]["code"] == "already_done"
        assert made.body[field] in again.body["error"]["message"]
    assert len((await control.call("GET", "/v1/tokens")).body["tokens"]) == 1


async def test_what_was_revoked_is_revoked(control):
    token = (await control.call("POST", "/v1/tokens", {"selector": MAILER})).body["token_id"]
    key = (await control.call("POST", "/v1/keys", {"name": "ada", "role": "viewer"})).body["key_id"]
    for path, made in ((f"/v1/tokens/{token}", token), ("/v1/keys/ada", key)):
        first = await ask(control, made, path, None, "DELETE")
        again = await ask(control, made, path, None, "DELETE")
        assert first.body == again.body == {"ok": True, "revoked": made}


async def test_a_note_is_written_once(control):
    kill_id = (await control.kill(MAILER, wait_s=0)).body["kill_id"]
    path = f"/v1/mesh/kills/{kill_id}/notes"
    first = await ask(control, "n", path, {"text": "why"})
    again = await ask(control, "n", path, {"text": "why"})
    assert first.body["note"]["text"] == again.body["note"]["text"] == "why"
    assert len((await control.call("GET", f"/v1/mesh/kills/{kill_id}")).body["notes"]) == 1


async def test_what_a_caller_did_wrong_is_said(control):
    await ask(control, "k", body={"selector": MAILER, "wait_s": 0})
    other = await ask(control, "k", body={"selector": "agent://x/y", "wait_s": 0})
    assert (other.status, other.body["error"]["code"]) == (422, "idempotency_key_reused")
    long = await ask(control, "x" * 256, body={"selector": MAILER})
    assert (long.status, long.body["error"]["code"]) == (400, "invalid_idempotency_key")
    assert len((await control.call("GET", "/v1/mesh/kills")).body["kills"]) == 1


async def test_keys_are_remembered_across_a_restart(tmp_path):
    async with running_control(tmp_path) as control:
        first = await ask(control, "k", body={"selector": MAILER, "wait_s": 0})
        await control.resume(MAILER, wait_s=0)
    async with running_control(tmp_path) as control:
        again = await ask(control, "k", body={"selector": MAILER, "wait_s": 0})
        assert again.status == 409
        assert first.body["kill_id"] in again.body["error"]["message"]
        assert (await control.call("GET", "/v1/mesh/kills")).body["kills"] == []
