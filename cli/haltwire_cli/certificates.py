"""A listener's certificate: which files, whether servers could use them, and for which names it has to be."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

from haltwire_cli.listen import ANYWHERE, Address, is_loopback

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


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(timezone.utc)
