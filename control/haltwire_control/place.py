"""Whether the files at a database's path are still the ones that are open.

SQLite goes on writing to a file that was deleted or replaced, and says that all is well: an order would
be called durable that the next start does not find.
"""

from __future__ import annotations

from pathlib import Path

from haltwire_control.store import StoreError


class Place:
    """A database and its log, as they were when each was first seen."""

    def __init__(self, path: Path) -> None:
        self._seen: dict[Path, tuple[int, int] | None] = {
            path: None,
            path.with_name(f"{path.name}-wal"): None,
        }
        self.check()

    def check(self) -> None:
        """StoreError when a file is gone, or another one is in its place."""
        for path, known in self._seen.items():
            found = _identity(path)
            if known is None:
                self._seen[path] = found
            elif found != known:
                how = "deleted" if found is None else "replaced"
                raise StoreError(f"{path.name} was {how} while it was in use")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
