"""The CAs that sign what proxies read inside TLS: ours, when a proxy runs with us, and what connected ones have told.

Proxies tell theirs over the link, which has proven who is who: an agent must not have to believe whatever
a network says is the CA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from haltwire_control.datadir import DataDirectory
from haltwire_control.hub import Peer

_PEM = re.compile(
    r"-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----(?:\r?\n)?"
)


def is_certificate(text: str) -> bool:
    """Whether the text is one certificate in PEM form and nothing else."""
    return _PEM.fullmatch(text) is not None


class Authorities:
    """What is served as /ca.pem and /ca-bundle.pem."""

    def __init__(self, directory: DataDirectory, has_proxy: bool) -> None:
        self._directory = directory
        self._has_proxy = has_proxy

    def all(self, peers: Iterable[Peer]) -> bytes | None:
        """Every CA, each once; None when no proxy has one."""
        own = self._directory.read_public("ca.pem") if self._has_proxy else None
        return b"".join(_each(own, peers)) or None

    def bundle(self, peers: Iterable[Peer]) -> bytes | None:
        """The system's CAs, and these."""
        base = self._directory.read_public("ca-bundle.pem")
        if base is None or self.all(peers) is None:
            return None
        return base + b"".join(pem for pem in _each(None, peers) if pem not in base)


def _each(own: bytes | None, peers: Iterable[Peer]) -> list[bytes]:
    found = [own] if own else []
    found += [peer.authority.encode() for peer in peers if peer.authority and not peer.gone]
    return list(dict.fromkeys(found))
