"""The data directory: who owns it, who may read it, and its first key.

One control server at a time: the locks are on the directory and on an open file in it, so they end with
the process, however that ends. A lock file can be replaced by a copy, the directory only with all in it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from haltwire_control.store import StoreLockedError

DATABASE, LEDGER, ADMIN_KEY, LOCK = "haltwire.db", "ledger.db", "admin.key", "control.lock"


class DataDirectory:
    """A data directory that this process holds until `release`."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        is_new = not self.path.exists()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_new:
            sync(self.path.parent)
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass  # a file system that locks no directories
        except BlockingIOError as error:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            self.release()
            raise StoreLockedError(
                f"another haltwire (process {holder or 'unknown'}) runs on {self.path}: stop it, or choose another --data-dir"
            ) from error
        with suppress(
            OSError
        ):  # only for the sentence above; a full disk must not keep us from orders
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def check_whole(self) -> None:
        """OSError when there was a database and it is gone: a new one would let go on whom the lost one stopped."""
        database = self.path / DATABASE
        was_used = (self.path / ADMIN_KEY).exists()
        if was_used and not (database.exists() and database.stat().st_size):
            raise OSError(
                f"{database} is missing or empty, but {ADMIN_KEY} says that it was in use: restore it; or remove {ADMIN_KEY} too and begin anew, without the orders, tokens and events that it held"
            )

    def private(self, name: str) -> Path:
        """The path of a file that only its owner can read, made when missing."""
        path = self.path / name
        is_new = not path.exists()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        if is_new:
            sync(self.path)  # what is written into it would be lost with its name
        return path

    def read_public(self, name: str) -> bytes | None:
        """A file that anybody may have, such as our CA certificate; None when there is none."""
        try:
            return (self.path / "public" / name).read_bytes()
        except FileNotFoundError:
            return None

    def read_admin_key(self) -> str | None:
        """The text of admin.key, or None without that file."""
        try:
            return (self.path / ADMIN_KEY).read_text(encoding="ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def write_admin_key(self, secret: str) -> None:
        """Write admin.key whole or not at all."""
        fresh = self.path / f"{ADMIN_KEY}.new"
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self.path / ADMIN_KEY)
        sync(self.path)

    def release(self) -> None:
        """Let another control server have it. Idempotent."""
        if self._lock >= 0:
            os.close(self._folder)
            os.close(self._lock)
            self._lock = -1


def sync(folder: Path) -> None:
    """Have the names in a folder survive a power cut, where its file system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
