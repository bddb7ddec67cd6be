"""A database is only written while it is where it was."""

from __future__ import annotations

import pytest
from haltwire_control.place import Place
from haltwire_control.store import StoreError


@pytest.fixture
def place(tmp_path):
    for name in ("haltwire.db", "haltwire.db-wal"):
        (tmp_path / name).touch()
    return Place(tmp_path / "haltwire.db")


def test_files_that_stay_are_fine(place):
    place.check()


@pytest.mark.parametrize("name", ["haltwire.db", "haltwire.db-wal"])
def test_a_file_that_comes_back_is_fine_and_another_one_is_not(place, tmp_path, name):
    path, moved = tmp_path / name, tmp_path / "moved"
    path.rename(moved)
    with pytest.raises(StoreError, match=f"^{name} was deleted while it was in use$"):
        place.check()
    path.write_bytes(b"")
    with pytest.raises(StoreError, match=f"^{name} was replaced while it was in use$"):
        place.check()
    moved.replace(path)
    place.check()


def test_a_log_that_is_made_later_is_followed_from_then_on(tmp_path):
    (tmp_path / "haltwire.db").touch()
    place = Place(tmp_path / "haltwire.db")
    place.check()
    (tmp_path / "haltwire.db-wal").touch()
    place.check()
    (tmp_path / "haltwire.db-wal").unlink()
    with pytest.raises(StoreError, match="deleted"):
        place.check()
