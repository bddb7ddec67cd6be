"""The certificate authority of this data directory, for the TLS that is read on the way.

It is made once and kept: what already trusts it goes on to. A damaged one is an error and never
replaced in silence, since every agent would then fail TLS without anybody knowing why.
"""

from __future__ import annotations

import fcntl
import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BASENAME = "haltwire"
"mitmproxy's certificate store loads `ca/<BASENAME>-ca.pem`."
_VALIDITY = timedelta(days=3650)
_BACKDATED = timedelta(days=2)  # for clients whose clock is behind, as mitmproxy does it


class AuthorityError(Exception):
    """The CA cannot be read or made; the caller shows the sentence and starts nothing."""


def ensure_ca(data_dir: Path) -> Path:
    """Make or check `ca/` (private) and `public/` of the data directory; the path of `public/ca.pem`.

    Safe to call from several processes at once: they all see one and the same CA.
    """
    private, public = data_dir / "ca", data_dir / "public"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        private.mkdir(mode=0o700, exist_ok=True)
        private.chmod(0o700)
        public.mkdir(exist_ok=True)
        public.chmod(0o755)
        with _locked(private / ".lock"):
            store = private / f"{BASENAME}-ca.pem"
            if not store.exists():
                write_whole(store, _new_ca(datetime.now(timezone.utc)), 0o600)
            store.chmod(0o600)
            _ensure_dh_parameters(private)
            _, certificate = read_authority(store)
            pem = certificate.public_bytes(serialization.Encoding.PEM)
            _write_if_other(public / "ca.pem", pem)
            roots = _system_roots()
            # SSL_CERT_FILE may name this very bundle.
            bundle = roots if pem in roots else roots + pem
            _write_if_other(public / "ca-bundle.pem", bundle)
    except OSError as error:
        raise AuthorityError(
            f"cannot set up the certificate authority in {data_dir}: {error}"
        ) from error
    return public / "ca.pem"


def upstream_roots(data_dir: Path, extra: Path | None) -> Path:
    """The file of roots by which upstreams are judged: the system's, and the operator's `extra`."""
    path = data_dir / "ca" / "upstream-roots.pem"
    try:
        more = b"" if extra is None else extra.read_bytes()
        if extra is not None and b"-----BEGIN CERTIFICATE-----" not in more:
            raise AuthorityError(f"{extra} holds no certificate in PEM form")
        with _locked(data_dir / "ca" / ".lock"):
            _write_if_other(path, _system_roots() + more)
    except OSError as error:
        raise AuthorityError(f"cannot read the upstream CA file: {error}") from error
    return path


def _new_ca(now: datetime) -> bytes:
    # P-256: mitmproxy signs its leaf certificates with the CA's own key, and 0.1 ms a signature
    # instead of 2 ms for RSA is what a TLS handshake spends.
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "haltwire"),
            # Names differ so that two installations can be trusted side by side.
            x509.NameAttribute(NameOID.COMMON_NAME, f"haltwire CA {os.urandom(4).hex()}"),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)


def read_authority(
    store: Path,
) -> tuple[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, x509.Certificate]:
    """The CA's key and certificate, after making sure that it can sign and has not run out."""
    pem = store.read_bytes()
    try:
        key = serialization.load_pem_private_key(pem, password=None)
        certificate = x509.load_pem_x509_certificate(pem)
        if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
            raise TypeError("its key is neither of an elliptic curve nor RSA")
        if key.public_key() != certificate.public_key():
            raise ValueError("the key is not that of the certificate")
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("the certificate is not that of an authority")
        if certificate.not_valid_after_utc <= datetime.now(timezone.utc):
            raise ValueError(f"it ran out on {certificate.not_valid_after_utc:%Y-%m-%d}")
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise AuthorityError(
            f"the certificate authority in {store} cannot be used ({error}): restore it from a"
            f" backup, or remove {store.parent} to make a new one that all clients must trust anew"
        ) from error
    return key, certificate


def _ensure_dh_parameters(private: Path) -> None:
    """Put mitmproxy's Diffie-Hellman parameters in place, which its workers would else race to write."""
    path = private / f"{BASENAME}-dhparam.pem"
    if not path.exists():
        from mitmproxy.certs import DEFAULT_DHPARAM  # takes a while to import, and needed only once

        write_whole(path, DEFAULT_DHPARAM, 0o600)


def _system_roots() -> bytes:
    """The certificates that this system trusts, or certifi's where there are none."""
    paths = ssl.get_default_verify_paths()
    for candidate in (paths.cafile, paths.openssl_cafile, *_KNOWN_BUNDLES):
        if candidate and Path(candidate).is_file():
            roots = Path(candidate).read_bytes()
            if b"-----BEGIN CERTIFICATE-----" in roots:
                return roots.rstrip(b"\n") + b"\n"
    import certifi

    return Path(certifi.where()).read_bytes().rstrip(b"\n") + b"\n"


# Where OpenSSL looks by default is often empty for a Python that brings its own.
_KNOWN_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_if_other(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content, 0o644)
    path.chmod(0o644)


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once and for good: never half of it, also after a power cut."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
