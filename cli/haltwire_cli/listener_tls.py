"""The listeners' TLS while it is used: certificates are renewed, and new ones are taken without a restart.

Files are looked at again and again. One that cannot be used leaves what is in use as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from haltwire_cli import trust
from haltwire_cli.certificates import Pair, leaf_of, server_context, utc_now

log = logging.getLogger(__name__)
LOOK_S = 2.0


class Listening:
    """A server's TLS whose certificate can be another one tomorrow; `context` stays the same object."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._in_use = self._seen = pair.stamp()
        self.context = server_context(pair)
        self._current = self.context
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._current

    async def follow(self) -> None:
        """Look at the files until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Take new files, the second time that they look the same.

        1. Half of a pair may have been replaced so far.
        2. Who has to know the new certificate before it is shown has had time to look (see `Pins`).
        """
        try:
            seen, before = self._pair.stamp(), self._seen
            self._seen = seen
            if seen == self._in_use or seen != before:
                return
            self._in_use = seen
            self._current = server_context(self._pair)
        except OSError as error:
            log.warning(
                "the new TLS certificate cannot be used, so the one before stays: %s", error
            )


class Pins:
    """The client's side of `Listening`: the file with the certificates that it takes is looked at too."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = file.stat().st_mtime_ns
        self.context = trust.of_this_certificate(file)

    async def follow(self) -> None:
        """Look at the file until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S / 2)
            with suppress(OSError):  # a file that is being replaced is there a moment later
                stamp = self._file.stat().st_mtime_ns
                if stamp != self._stamp:
                    self.context.load_verify_locations(cafile=str(self._file))
                    self._stamp = stamp


class Published:
    """`public/control.pem`: the operator's certificate for those on this machine, who cannot call it by its name.

    The one before stays in it: it is shown until every server has looked.
    """

    def __init__(self, pair: Pair, file: Path) -> None:
        self._pair = pair
        self.file = file
        self._leaf = ""
        self.look()

    def look(self) -> None:
        """Write the file if the certificate is another one."""
        leaf = leaf_of(self._pair.certificate)
        if leaf != self._leaf:
            written = self.file.with_suffix(f".{os.getpid()}")
            written.write_text(leaf + self._leaf)
            written.chmod(0o644)
            written.replace(self.file)
            self._leaf = leaf


class Issued:
    """Our own certificate: made by `issue` at once, again after some time, and when our names change."""

    def __init__(
        self,
        issue: Callable[[tuple[str, ...], datetime], Path],
        names: Callable[[], tuple[str, ...]],
        renewed_after: timedelta,
    ) -> None:
        self._issue, self._names, self._renewed_after = issue, names, renewed_after
        self.pair = self._made()

    def look(self, now: datetime | None = None) -> None:
        """Make it anew if it is time."""
        age = (now or utc_now()) - self._at
        # A clock that was set back makes what was issued not valid yet.
        if not timedelta(0) <= age < self._renewed_after or self._names() != self._for:
            self.pair = self._made()

    def _made(self) -> Pair:
        self._for, self._at = self._names(), utc_now()
        path = self._issue(self._for, self._at)
        return Pair(path, path)


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """What the listeners serve with, and how clients on this machine know them."""

    pair: Pair
    control: bool
    "Whether the control server speaks TLS; the proxy's port always takes both."
    pins: Path | None
    "The file of the certificates to take; None when our own authority vouches."
    look: Callable[[], None]
    look_every_s: float


async def keep(look: Callable[[], None], every_s: float, tell: Callable[[str], None]) -> None:
    """Call it again and again until cancelled; say when it fails, once for each reason in a row."""
    said = ""
    while True:
        await asyncio.sleep(every_s)
        try:
            look()
            said = ""
        except Exception as error:
            if str(error) != said:
                said = str(error)
                tell(f"the TLS certificate could not be renewed, so the one before stays: {said}")


@asynccontextmanager
async def followed(*watched: Listening | Pins | None) -> AsyncIterator[None]:
    """Have their files looked at while the context is open."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(one.follow(), name="look at certificates") for one in watched if one]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
