"""Certificates as operators have them: good ones, and each kind of bad one."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID


def new_key(bits: int | None = None):
    if bits:
        return rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return ec.generate_private_key(ec.SECP256R1())


def write_pair(
    folder: Path,
    name: str = "control.example.com",
    *,
    days: tuple[float, float] = (-1, 30),
    key=None,
    other_key: bool = False,
    password: bytes | None = None,
) -> tuple[Path, Path]:
    """A self-signed certificate, valid between these days from now, and its key: two files."""
    key = key or new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    files = folder / f"{name}.crt", folder / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        (new_key() if other_key else key).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
    )
    return files


def shown(server: ssl.SSLContext, client: ssl.SSLContext | None = None) -> bytes:
    """The certificate that a client gets to see, after a whole handshake."""
    if client is None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
    bios = [ssl.MemoryBIO() for _ in range(4)]
    near = client.wrap_bio(bios[0], bios[1])
    far = server.wrap_bio(bios[2], bios[3], server_side=True)
    for _ in range(4):
        for side in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        bios[2].write(bios[1].read())
        bios[0].write(bios[3].read())
    assert far.version() in ("TLSv1.2", "TLSv1.3")
    return near.getpeercert(binary_form=True)


class Impostor:
    """A TLS server on loopback that shows a certificate of its own and keeps whatever it hears."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self.heard = bytearray()
        "What came: inside the TLS, where there is some."
        self.failed: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            with connection:
                try:
                    if self._context is None:
                        self.heard += connection.recv(65536)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                        continue
                    with self._context.wrap_socket(connection, server_side=True) as tls:
                        self.heard += tls.recv(65536)
                except OSError as error:
                    self.failed.append(type(error).__name__)
