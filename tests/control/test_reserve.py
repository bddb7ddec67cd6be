"""The reserve on disks that are really full: what it gives, to whom, and when it takes it back."""

from __future__ import annotations

import sqlite3
from errno import ENOSPC

import pytest
from haltwire_control import reserve as module
from haltwire_control.ledger_file import LedgerFile
from haltwire_control.reserve import ROOM, SIZE, Reserve, has_room
from haltwire_control.store import StoreFullError
from support.disks import fill, free_bytes, needs_root, small_disk
from support.stores import issue_step, opened

NO_ROOM = OSError(ENOSPC, "No space left on device")


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)


def blocks(path) -> int:
    return path.stat().st_blocks * 512


def test_it_is_taken_at_the_start_and_kept_at_the_end(tmp_path):
    path = tmp_path / "reserve"
    for _ in range(2):
        reserve = Reserve(path)
        assert not reserve.is_full
        assert blocks(path) >= SIZE
        assert path.stat().st_mode & 0o777 == 0o600
        reserve.close()
        reserve.close()
    assert blocks(path) >= SIZE


def test_what_is_not_urgent_gets_nothing_of_it(tmp_path):
    reserve = Reserve(tmp_path / "reserve")
    assert not reserve.gave_way(NO_ROOM, urgent=False)
    assert reserve.is_full
    assert blocks(tmp_path / "reserve") >= SIZE
    assert reserve.gave_way(NO_ROOM, urgent=True)
    assert blocks(tmp_path / "reserve") == 0
    assert not reserve.gave_way(NO_ROOM, urgent=True), "there is nothing left to give"
    reserve.close()


def test_another_failure_gets_nothing_of_it(tmp_path):
    reserve = Reserve(tmp_path / "reserve")
    assert not reserve.gave_way(PermissionError(13, "no"), urgent=True)
    assert not reserve.gave_way(sqlite3.OperationalError("locked"), urgent=True)
    assert not reserve.is_full
    reserve.close()


def test_it_is_taken_again_when_there_is_room(tmp_path, at_once):
    reserve = Reserve(tmp_path / "reserve")
    assert reserve.gave_way(NO_ROOM, urgent=True)
    reserve.look()
    assert not reserve.is_full
    assert blocks(tmp_path / "reserve") >= SIZE
    reserve.close()


@needs_root
def test_it_waits_for_more_room_than_its_own(tmp_path, at_once):
    """Taken with the last free block, it would be given away again at the next write."""
    with small_disk(tmp_path / "disk", 12) as disk:
        reserve = Reserve(disk / "reserve")
        ballast = fill(disk, "ballast")
        assert reserve.gave_way(NO_ROOM, urgent=True)
        assert free_bytes(disk) >= SIZE
        reserve.look()
        assert reserve.is_full
        with ballast.open("r+b") as file:
            file.truncate(ballast.stat().st_size - ROOM + 65536)
        reserve.look()
        assert reserve.is_full
        ballast.unlink()
        reserve.look()
        assert not reserve.is_full
        reserve.close()


@needs_root
def test_a_disk_too_small_for_it_is_full_from_the_start(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 2) as disk:
        reserve = Reserve(disk / "reserve")
        assert reserve.is_full
        assert blocks(disk / "reserve") == 0
        reserve.close()
    assert "the disk is full" in caplog.text


@needs_root
async def test_a_store_that_was_closed_opens_again_on_a_full_disk(tmp_path):
    """SQLite makes its log and index anew; they get the reserve's room."""
    with small_disk(tmp_path / "disk", 16) as disk:
        async with opened(disk / "haltwire.db") as (store, _):
            await store.commit(issue_step("agent://acme/prod/a", "K1"), urgent=True)
        fill(disk, "ballast")
        async with opened(disk / "haltwire.db") as (store, heard):
            assert [order.kill.kill_id for order in heard.state.orders] == ["K1"]
            assert store.is_full
            step = issue_step("agent://acme/prod/b", "K2")
            assert (await store.commit(step, fallback=step, urgent=True)).durable
            with pytest.raises(StoreFullError):
                await store.probe()


@needs_root
async def test_the_ledger_leaves_room_and_catches_up(tmp_path, caplog):
    from haltwire.wire.names import AgentRef
    from haltwire_control.ledger import Beat
    from support.control import utc_now

    agent = AgentRef.parse("agent://acme/prod/a")
    with small_disk(tmp_path / "disk", 16) as disk:
        file = LedgerFile(disk / "ledger.db")
        for number in range(2000):
            beat = Beat(metadata={"note": "x" * 15_000})
            file.ledger.beat(agent, f"i-{number}", beat, utc_now())
            if number % 50 == 0:
                await file.flush()
        await file.flush()
        assert free_bytes(disk) >= ROOM, "30 MB of heartbeats left no room for orders"
        assert "larger than the room" in caplog.text or "nearly full" in caplog.text
        assert len(file.ledger.instances(agent)) == 2000, "all of it is known all the same"
        await file.close()


def test_a_folder_that_is_gone_is_left_to_the_write(tmp_path):
    assert has_room(tmp_path / "nothing", 2**60)
