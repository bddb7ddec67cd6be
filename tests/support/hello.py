"""ClientHellos: real ones as OpenSSL makes them, and those that are built by hand."""

from __future__ import annotations

import ssl


def real_hello(
    name: str | None, alpn: tuple[str, ...] = (), tls12: bool = False, ciphers: str | None = None
) -> bytes:
    """The first flight of a client that wants this name."""
    context = client_context()
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if ciphers:
        context.set_ciphers(ciphers)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a peer")


def client_context() -> ssl.SSLContext:
    """A client that believes everybody."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def vector(width: int, content: bytes) -> bytes:
    """A length and what it counts."""
    return len(content).to_bytes(width) + content


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, content)


def names(*texts: bytes, kind: int = 0) -> bytes:
    """A server_name extension."""
    entries = b"".join(bytes((kind,)) + vector(2, text) for text in texts)
    return extension(0, vector(2, entries))


def message(*extensions: bytes, version: bytes = b"\3\3", more: bytes = b"") -> bytes:
    """A ClientHello message."""
    body = version + b"r" * 32 + vector(1, b"s" * 32) + vector(2, b"\x13\x01") + vector(1, b"\0")
    if extensions:
        body += vector(2, b"".join(extensions))
    return b"\1" + vector(3, body) + more


def records(content: bytes, *sizes: int, kind: int = 22, version: bytes = b"\3\1") -> bytes:
    """TLS records of these sizes, and one with the rest."""
    made = b""
    for size in sizes:
        made += bytes((kind,)) + version + vector(2, content[:size])
        content = content[size:]
    return made + (bytes((kind,)) + version + vector(2, content) if content else b"")
