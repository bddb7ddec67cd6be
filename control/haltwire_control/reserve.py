"""Room on the disk that is kept for orders: a file which takes it up, and gives it back when the disk is full.

While the disk is full only what is urgent is stored (orders, what ends them, their receipts, and
revocations), so that no volume of anything else can eat what the file gave back.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from haltwire_control.problems import is_no_room

log = logging.getLogger(__name__)

RESERVE = "reserve"
SIZE = 4 * 1024 * 1024
"An order with its events and receipt takes about 20 KB until the next checkpoint: some 200 of them."
ROOM = 4 * 1024 * 1024
"What must be free beside the reserve before it is taken again, and what volume leaves to orders."
LOOK_EVERY_S = 0.25


class Reserve:
    """Held from the start. All but `is_full` belongs to the store's writer thread."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._looked_at = time.monotonic()
        self.is_full = not self._take()
        "Whether the disk took something not, and since then has not had room for that and the reserve."
        if self.is_full:
            log.error("there is no room for %s: the disk is full, and only orders are stored", path)

    def gave_way(self, error: BaseException, *, urgent: bool) -> bool:
        """Whether a write that failed with this error can be tried again, because it now has more room."""
        if not is_no_room(error):
            return False
        if not self.is_full:
            self.is_full = True
            log.error(
                "the disk of the data directory is full or failing (%s): only orders, resumes and revocations are stored until it takes everything again",
                error,
            )
        return urgent and self._release()

    def opened[T](self, opening: Callable[[], T]) -> T:
        """What `opening` opens; tried again with the reserve's room when the disk has none."""
        try:
            return opening()
        except sqlite3.Error as error:
            if not self.gave_way(error, urgent=True):
                raise
            return opening()

    def look(self) -> None:
        """Take the room again if there is enough."""
        if not self.is_full or time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        if self._take():
            self.is_full = False
            log.warning("there is room on the disk again: everything is stored")

    def close(self) -> None:
        """Let go of the file, not of the room that it takes up. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def _is_held(self) -> bool:
        # Blocks and not its length: an earlier process may have died between the two.
        return os.fstat(self._file).st_blocks * 512 >= SIZE

    def _take(self) -> bool:
        missing = 0 if self._is_held else SIZE
        if not has_room(self._folder, ROOM + missing):
            return False
        if missing:
            try:
                _allocate(self._file)
            except OSError:
                os.ftruncate(self._file, 0)  # part of it may have been there
                return False
        return True

    def _release(self) -> bool:
        if os.fstat(self._file).st_blocks == 0:
            return False
        # Not unlink: that would need the directory, and find another's file in its place.
        os.ftruncate(self._file, 0)
        log.error("the reserve is given to orders: %d MB", SIZE // 1024**2)
        return True


def _allocate(file: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, SIZE)
    else:  # macOS
        for offset in range(0, SIZE, 65536):
            os.pwrite(file, bytes(65536), offset)


def has_room(folder: Path, room: int) -> bool:
    """Whether this much is free on the folder's disk; what cannot be known is left to the write itself."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return True
    return disk.f_bavail * disk.f_frsize >= room
