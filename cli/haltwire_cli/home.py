"""The data directory as the command line sees it: who runs on it, where that can be reached, the admin key."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from haltwire_cli.failures import NOT_ALLOWED, Failure
from haltwire_cli.listen import open_files
from haltwire_cli.options import default_data_dir

PREDECESSOR_S = 3.0
"A killed supervisor's children end within two seconds, and hold the claim until then."


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where what runs on a data directory can be reached; None for the half that does not run there."""

    proxy_url: str | None
    control_url: str | None
    ca_file: str
    control_certificate: str | None = None
    "The certificates by which the control server is known, when our authority has not signed its."


@dataclass(frozen=True, slots=True)
class Home:
    """One data directory."""

    path: Path

    @property
    def admin_key(self) -> Path:
        """The file with the key of the local operator."""
        return self.path / "admin.key"

    @property
    def is_default(self) -> bool:
        """Whether commands find it without being told, in any terminal."""
        return self.path == default_data_dir()

    @contextmanager
    def claimed(self) -> Iterator[int]:
        """Hold the directory for one `up`, `control` or `proxy`: yields the descriptor of the claim; Failure when another one has it."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._claim, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Failure(
                f"{self.path} cannot be used: {error.strerror}. Choose another one with --data-dir."
            ) from error
        try:
            self._lock(fd)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
            yield fd
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def _lock(self, fd: int) -> None:
        give_up = time.monotonic() + PREDECESSOR_S
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            holder = os.pread(fd, 32, 0).decode(errors="replace")
            if not _lives(holder) and time.monotonic() > give_up:
                # A frozen process cannot notice that its supervisor is gone.
                left = ", ".join(self._holders()) or "unknown"
                raise Failure(
                    f"{self.path} is still held by processes that an earlier haltwire left behind (pid {left}): end them with kill -9, or choose another --data-dir."
                )
            if _lives(holder):
                raise Failure(
                    f"{self.path} is in use by another haltwire (pid {holder}): stop that one, or give this one another --data-dir."
                )
            time.sleep(0.05)

    def _holders(self) -> list[str]:
        """Pids of the other processes that have the claim open, as far as this user may see them."""
        return [
            process.name
            for process in Path("/proc").glob("[0-9]*")
            if process.name != str(os.getpid()) and str(self._claim) in open_files(process)
        ]

    def publish(self, endpoints: Endpoints) -> None:
        """Write endpoints.json, all of it or nothing."""
        written = self._endpoints.with_suffix(".json.new")
        document = asdict(endpoints)
        if endpoints.control_certificate is None:
            del document["control_certificate"]
        written.write_text(json.dumps(document, indent=2) + "\n")
        written.replace(self._endpoints)

    def unpublish(self) -> None:
        """Remove endpoints.json."""
        self._endpoints.unlink(missing_ok=True)

    def endpoints(self) -> Endpoints | None:
        """Where what runs on this directory can be reached; None when nothing runs.

        A file left behind by one that was killed is not believed: another program may have its port by
        now, and would be shown the admin key.
        """
        try:
            if not self._is_claimed():
                return None
            document = json.loads(self._endpoints.read_text())
            return Endpoints(
                _text_or_none(document["proxy_url"]),
                _text_or_none(document["control_url"]),
                str(document["ca_file"]),
                _text_or_none(document.get("control_certificate")),
            )
        except PermissionError as error:
            raise Failure(
                f"{self.path} is another user's: ask for a key, and give it with --url and --key-file.",
                NOT_ALLOWED,
            ) from error
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def _endpoints(self) -> Path:
        return self.path / "endpoints.json"

    @property
    def _claim(self) -> Path:
        return self.path / "up.lock"

    def _is_claimed(self) -> bool:
        try:
            fd = os.open(self._claim, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
