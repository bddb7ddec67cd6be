"""The certificate of our own listeners, from our own authority: for the control server, and for TLS to the proxy.

It is short-lived and made anew at every start, and while running long before it runs out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from haltwire_proxy.authority import BASENAME, AuthorityError, read_authority, write_whole

VALIDITY = timedelta(days=30)
RENEWED_AFTER = timedelta(days=10)
"A machine may sleep for the rest of the time."
BACKDATED = timedelta(days=1)
"For clients whose clock is behind."
_DNS_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")


def issue_leaf(data_dir: Path, names: Iterable[str], now: datetime) -> Path:
    """Make `ca/listener.pem` anew (key, certificate, authority) for these names and addresses; its path.

    AuthorityError when that cannot be done; a certificate that was there is then still there.
    """
    try:
        authority_key, authority = read_authority(data_dir / "ca" / f"{BASENAME}-ca.pem")
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "haltwire listener")]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(min(now + VALIDITY, authority.not_valid_after_utc))
        )
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        for extension, critical in (
            (x509.SubjectAlternativeName(_general_names(names)), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (usage, True),  # signatures alone
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                False,
            ),
        ):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(authority_key, hashes.SHA256())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ) + b"".join(
            one.public_bytes(serialization.Encoding.PEM) for one in (certificate, authority)
        )
        path = data_dir / "ca" / "listener.pem"
        write_whole(path, pem, 0o600)
    except OSError as error:
        raise AuthorityError(
            f"cannot make the listeners' certificate in {data_dir}: {error}"
        ) from error
    return path


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    """As a certificate has them, each once; what is neither address nor DNS name is left out."""
    found: dict[x509.GeneralName, None] = {}
    for name in names:
        try:
            found[x509.IPAddress(ipaddress.ip_address(name.partition("%")[0]))] = None
        except ValueError:
            if _DNS_NAME.fullmatch(name):
                found[x509.DNSName(name.lower())] = None
    return list(found)
