"""recover: what was found in words, an exit code while somebody has to look, and what is accepted."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from haltwire_cli.recover import recovery_text

NOW = datetime(2026, 11, 22, 9, 31, tzinfo=timezone.utc)


def order(kill_id: str, actor: str = "key:ada") -> dict:
    return {
        "kill_id": kill_id,
        "selector": "agent://acme/prod/mailer",
        "mode": "cut",
        "reason": None,
        "actor": actor,
        "created_at": "2026-11-22T09:30:00.000000Z",
    }


def found(**more) -> dict:
    return {
        "recovery_id": "R1",
        "version": 2,
        "began_at": "2026-11-22T09:30:00.000000Z",
        "why": "the store lacks what a proxy has applied",
        "store_revision": 40,
        "seen_revision": 57,
        "proxies": ["w-1", "w-2"],
        "orders_taken": [order("K1", "key:\x1b[2Jada")],
        "orders_kept": [],
        "tokens_withheld": [{"token_id": "T1", "selector": "agent://acme/**"}],
        "accepted_at": None,
        "accepted_by": None,
        **more,
    }


def test_nothing_to_recover(haltwire, control):
    control.will("GET", "/v1/recovery", {"ok": True, "needed": False, "recovery": None})
    for arguments in ((), ("--accept",)):
        result = haltwire("recover", *arguments)
        assert result.exit_code == 0
        assert "nothing to recover" in result.stdout
        assert control.last[0] == "GET"


def test_what_was_found_is_shown_and_the_exit_code_says_that_it_waits(haltwire, control):
    control.will("GET", "/v1/recovery", {"ok": True, "needed": True, "recovery": found()})
    result = haltwire("recover")
    assert result.exit_code == 1
    assert [call[0] for call in control.calls] == ["GET"]
    for said in (
        "K1",
        "T1",
        "1 order in force taken over",
        "haltwire recover --accept",
        "w-1 and w-2",
    ):
        assert said in result.stdout
    assert "\x1b" not in result.stdout
    assert "revision" not in result.stdout
    as_json = haltwire("recover", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["recovery"]["seen_revision"] == 57


def test_what_was_seen_is_what_is_accepted(haltwire, control):
    control.will("GET", "/v1/recovery", {"ok": True, "needed": True, "recovery": found()})
    done = found(accepted_at="2026-11-22T09:31:00.000000Z", accepted_by="key:ada")
    accepted = {"ok": True, "needed": False, "recovery": done}
    control.will("POST", "/v1/recovery/accept", accepted)
    result = haltwire("recover", "--accept")
    assert (result.exit_code, control.last[3]) == (0, {"recovery_id": "R1", "version": 2})
    assert "Accepted by key:ada" in result.stdout


def test_who_may_not_accept_is_told_so(haltwire, control):
    control.will("GET", "/v1/recovery", {"ok": True, "needed": True, "recovery": found()})
    refused = {"error": {"code": "not_allowed", "message": "no"}}
    control.will("POST", "/v1/recovery/accept", refused, 403)
    assert haltwire("recover", "--accept").exit_code == 4


def test_a_long_list_is_cut_and_counted():
    text = recovery_text(found(orders_kept=[order(f"K{n:04}") for n in range(60)]), NOW)
    assert "60 orders in force that a proxy no longer had" in text
    assert "and 10 more; --json has all" in text
    assert "K0049" in text
    assert "K0050" not in text
