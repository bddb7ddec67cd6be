"""The audit log as it is asked for: filtered, paged, followed, exported, verified."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from contextlib import closing

import pytest
from haltwire_control.audit import GENESIS, canonical

MAILER = "agent://acme/prod/mailer"


@pytest.fixture
async def told(control):
    """An admin key, four kills and a token: six events."""
    for selector in (MAILER, f"{MAILER}~i-1", "agent://acme/**", "agent://other/prod/x"):
        await control.kill(selector, wait_s=0, reason="why")
    await control.token(MAILER)
    return control


async def seqs(control, query: str) -> list[int]:
    return [event["seq"] for event in await control.events(query)]


PAGES = {
    "the latest, oldest first": ("limit=2", [5, 6]),
    "all": ("limit=1000", [1, 2, 3, 4, 5, 6]),
    "after one": ("after=4", [5, 6]),
    "a page after one": ("after=1&limit=2", [2, 3]),
    "after the last": ("after=6", []),
    "a type": ("event_type=token.created", [6]),
    "a type, the latest": ("event_type=kill.issued&limit=2", [4, 5]),
    "a type, after": ("event_type=kill.issued&after=2", [3, 4, 5]),
    "an agent: whatever may be about it": (f"selector={MAILER}", [2, 3, 4, 6]),
    "an instance": (f"selector={MAILER}~i-2", [2, 4, 6]),
    "a glob": ("selector=agent://other/**", [5]),
    "a type that is not there": ("event_type=nothing", []),
}


@pytest.mark.parametrize(("query", "expected"), PAGES.values(), ids=PAGES)
async def test_which_events(told, query, expected):
    assert await seqs(told, query) == expected


async def test_a_question_says_where_to_go_on(told):
    async def next_after(query):
        return (await told.call("GET", f"/v1/mesh/events?{query}")).body["next_after"]

    assert await next_after("limit=2") == 6
    assert await next_after("after=1&limit=2") == 3
    # What does not fit was looked at, too: it need not be looked at again.
    assert await next_after("after=1&event_type=nothing") == 6


async def test_an_event_has_all_its_fields(told):
    event = (await told.events("after=1&limit=1"))[0]
    assert event["event_type"] == "kill.issued"
    assert event["agent_uri"] == event["address"] == MAILER
    assert event["actor"] == "key:admin"
    assert event["actor_id"].startswith("Y")
    assert event["reason"] == "why"
    assert event["event_id"].startswith("E")


async def test_following_waits_for_what_fits(told):
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(seqs(told, "after=6&event_type=token.created&follow_s=10"))
        await told.kill("agent://a/b", wait_s=0)
        await told.token("agent://a/b")
    assert waiting.result() == [8]


async def test_following_ends_empty(told):
    began = time.monotonic()
    assert await seqs(told, "after=6&follow_s=0.2") == []
    assert 0.15 < time.monotonic() - began < 5


async def test_an_export_can_be_checked_by_anybody(told):
    reply = await told.call("GET", "/v1/mesh/audit/export")
    assert reply.headers["Content-Type"] == "application/jsonl"
    previous = GENESIS
    lines = reply.body.decode().splitlines()
    for line in lines:
        row = json.loads(line)
        claimed = row.pop("hash")
        previous = hashlib.sha256(f"{previous}\n{canonical(row)}".encode()).hexdigest()
        assert previous == claimed
    verified = (await told.call("GET", "/v1/mesh/audit/verify")).body
    assert verified == {
        "ok": True,
        "events": len(lines),
        "head_hash": previous,
        "first_bad_seq": None,
        "anchored": False,
    }


async def test_a_row_changed_by_hand_is_named_and_still_listed(told):
    with closing(sqlite3.connect(told.data_dir / "haltwire.db")) as file, file:
        file.execute("UPDATE events SET actor = 'key:eve' WHERE seq = 3")
        file.execute("UPDATE events SET address = 'nonsense' WHERE seq = 4")
    verified = (await told.call("GET", "/v1/mesh/audit/verify")).body
    assert (verified["ok"], verified["first_bad_seq"]) == (False, 3)
    assert len(await told.events(f"selector={MAILER}")) == 3


async def test_details_broken_by_hand_do_not_hide_the_others(told):
    with closing(sqlite3.connect(told.data_dir / "haltwire.db")) as file, file:
        file.execute("UPDATE events SET details = '{' WHERE seq = 3")
    assert len(await told.events()) == 6
    assert (await told.call("GET", "/v1/mesh/audit/verify")).body["first_bad_seq"] == 3
