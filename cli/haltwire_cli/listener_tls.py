"""The listeners' TLS: which certificate, for which names, checked before it is used and renewed while it is used.

A certificate's files are looked at again and again: one that was renewed is taken without a restart, and one that
cannot be used leaves what is in use as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

from haltwire_cli import trust
from haltwire_cli.listen import ANYWHERE, Address, is_loopback

log = logging.getLogger(__name__)
LOOK_S = 2.0
_PEM_END = "-----END CERTIFICATE-----\n"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in PEM files; they may be one."""

    certificate: Path
    key: Path

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when either file does; OSError when one is not there."""
        seen = (self.certificate.stat(), self.key.stat())
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in seen)


def server_context(pair: Pair) -> ssl.SSLContext:
    """A context of ours with this certificate; OSError when the files cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    # A password cannot be asked for: nobody sits at a server that starts by itself.
    context.load_cert_chain(pair.certificate, pair.key, password=lambda: "")
    return context


def leaf_of(certificate: Path) -> str:
    """The first certificate of a PEM file, as PEM; ValueError when there is none."""
    text = certificate.read_text(encoding="ascii", errors="replace")
    start = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find("-----END CERTIFICATE-----", start)
    if start < 0 or end < 0:
        raise ValueError(f"{certificate} holds no certificate in PEM form")
    return text[start:end] + _PEM_END


def check(pair: Pair, now: datetime) -> None:
    """ValueError, as a sentence without its full stop, when servers could not use this pair."""
    for path in (pair.certificate, pair.key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(leaf_of(pair.certificate).encode())
    except ValueError as error:
        raise ValueError(f"{pair.certificate} holds no certificate in PEM form") from error
    if certificate.not_valid_after_utc <= now:
        raise ValueError(
            f"the certificate in {pair.certificate} ran out on {certificate.not_valid_after_utc:%Y-%m-%d}"
        )
    if certificate.not_valid_before_utc > now:
        raise ValueError(
            f"the certificate in {pair.certificate} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
        )
    try:
        server_context(pair)
    except ssl.SSLError as error:
        raise ValueError(_unusable(pair, error)) from error


def _unusable(pair: Pair, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{pair.key} is not the key of the certificate in {pair.certificate}"
    if "ENCRYPTED" in pair.key.read_text(errors="replace"):
        return f"the key in {pair.key} is encrypted; nobody could type its password when a server starts"
    if error.reason and "TOO_SMALL" in error.reason:
        return f"the key of {pair.certificate} is too short to be safe"
    return (
        f"{pair.certificate} and {pair.key} cannot be used ({error.reason or 'no key in PEM form'})"
    )


def names_of(listens: Iterable[tuple[Address, Address]], host: str) -> tuple[str, ...]:
    """What the listeners are called: as they were given and where they are, and this machine by all its names.

    `listens` holds for each listener what was asked for and what was bound.
    """
    names = dict.fromkeys(("localhost", "127.0.0.1", "::1", host))
    anywhere = False
    for asked, bound in listens:
        names |= dict.fromkeys((asked.host, bound.host))
        anywhere = anywhere or bound.host in ANYWHERE
    if anywhere:
        names |= dict.fromkeys(addresses_of_this_host())
    return tuple(name for name in names if name not in ANYWHERE)


def addresses_of_this_host(proc: Path = Path("/proc")) -> list[str]:
    """Every address of this network namespace, but loopback and those that mean nothing elsewhere."""
    import ipaddress

    found: dict[str, None] = {}
    with suppress(OSError):
        # Leaves of the local table: "|-- 10.0.0.5" and, on the line below, "/32 host LOCAL".
        lines = (proc / "net" / "fib_trie").read_text().splitlines()
        for above, line in pairwise(lines):
            if "/32 host LOCAL" in line:
                found[above.rpartition(" ")[2]] = None
    with suppress(OSError):
        for line in (proc / "net" / "if_inet6").read_text().splitlines():
            found[str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0])))] = None
    addresses = [ipaddress.ip_address(text) for text in found]
    return [str(one) for one in addresses if not (one.is_loopback or one.is_link_local)]


def serves_tls(control: Address, own: Pair | None, insecure: bool) -> bool:
    """Whether the control server listens with TLS."""
    return own is not None or not (insecure or is_loopback(control))


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


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(timezone.utc)


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
