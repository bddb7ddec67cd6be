"""The data directory: one owner, private files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from haltwire_control.datadir import ADMIN_KEY, LOCK, DataDirectory
from haltwire_control.store import StoreLockedError


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def directory(tmp_path):
    held = DataDirectory(str(tmp_path / "data"))
    yield held
    held.release()


def test_it_is_private(directory):
    assert mode(directory.path) == 0o700
    assert mode(directory.private("haltwire.db")) == 0o600


def test_a_file_that_was_open_to_others_is_closed_to_them(directory):
    (directory.path / "haltwire.db").touch(mode=0o644)
    assert mode(directory.private("haltwire.db")) == 0o600


def test_a_second_owner_is_told_who_the_first_is(directory):
    with pytest.raises(StoreLockedError, match=rf"process {os.getpid()}.*--data-dir"):
        DataDirectory(str(directory.path))


@pytest.mark.parametrize("how", ["deleted", "replaced by a copy"])
def test_a_lock_file_of_another_inode_lets_no_second_owner_in(directory, how):
    """Without the lock on the directory itself both of these were let in."""
    lock = directory.path / LOCK
    content = lock.read_bytes()
    lock.unlink()
    if how != "deleted":
        lock.write_bytes(content)
    with pytest.raises(StoreLockedError, match="another haltwire"):
        DataDirectory(str(directory.path))
    directory.release()
    DataDirectory(str(directory.path)).release()


def test_new_names_are_synced_before_anything_is_stored_under_them(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def noting(handle):
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", noting)
    held = DataDirectory(str(tmp_path / "data"))
    held.private("haltwire.db")
    assert synced == [str(tmp_path), str(held.path)]
    held.private("haltwire.db")
    assert len(synced) == 2
    held.write_admin_key("hwk_one")
    assert synced[2:] == [str(held.path / "admin.key.new"), str(held.path)]
    held.release()


def test_it_can_be_had_again_after_release(directory):
    directory.release()
    directory.release()
    DataDirectory(str(directory.path)).release()


def test_the_admin_key_is_written_whole_and_private(directory):
    assert directory.read_admin_key() is None
    directory.write_admin_key("hwk_one")
    directory.write_admin_key("hwk_two")
    assert directory.read_admin_key() == "hwk_two"
    assert mode(directory.path / ADMIN_KEY) == 0o600
    assert sorted(p.name for p in directory.path.iterdir()) == ["admin.key", "control.lock"]


def test_public_files_need_not_be_there(directory):
    assert directory.read_public("ca.pem") is None
    (directory.path / "public").mkdir()
    (directory.path / "public" / "ca.pem").write_bytes(b"PEM")
    assert directory.read_public("ca.pem") == b"PEM"


UNUSED = {"new": (), "used": ("admin.key", "haltwire.db"), "begun": ("haltwire.db",)}


@pytest.mark.parametrize("files", UNUSED.values(), ids=UNUSED)
def test_a_directory_that_is_new_or_whole_is_fine(directory, files):
    for name in files:
        (directory.path / name).write_text("something")
    directory.check_whole()


@pytest.mark.parametrize("left", [None, ""], ids=["gone", "empty"])
def test_a_database_that_was_there_is_missed(directory, left):
    directory.write_admin_key("hwk_one")
    if left is not None:
        (directory.path / "haltwire.db").write_text(left)
    with pytest.raises(OSError, match=r"is missing or empty.*restore it; or remove admin\.key"):
        directory.check_whole()


def test_a_full_disk_keeps_nobody_from_holding_it(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", no_room)
    DataDirectory(str(tmp_path / "data")).release()
