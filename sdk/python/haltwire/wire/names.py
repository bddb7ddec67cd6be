"""Names of agents and instances, and every way in which clients spell them.

Pure and total: a text is parsed into a name or refused with a ValueError that quotes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import unquote

SCHEME = "agent://"
MAX_USERINFO_BYTES = 512
_SEGMENT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PEER = re.compile(r"ip:[0-9a-fA-F.:]{2,45}")


@dataclass(frozen=True, slots=True, order=True)
class AgentRef:
    """An agent's name: 2 to 8 segments, written `agent://ORG/ENV/NAME`."""

    segments: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.segments) <= 8:
            raise ValueError(f"an agent has 2 to 8 segments: {str(self)!r}")
        for segment in self.segments:
            if not _SEGMENT.fullmatch(segment):
                raise ValueError(
                    f"{segment!r} in {str(self)!r} is no agent name segment: lower-case letters, digits, '-' and '_', at most 63"
                )

    def __str__(self) -> str:
        return SCHEME + "/".join(self.segments)

    @property
    def label(self) -> str:
        """The form that survives in a proxy URL: dots for slashes, no scheme."""
        return ".".join(self.segments)

    @property
    def name(self) -> str:
        """The last segment, which people type."""
        return self.segments[-1]

    @classmethod
    def parse(cls, text: str) -> AgentRef:
        """Read the canonical form; ValueError on anything else."""
        if not text.startswith(SCHEME):
            raise ValueError(f"an agent is written agent://org/env/name, not {text!r}")
        return cls(tuple(text[len(SCHEME) :].split("/")))

    @classmethod
    def parse_label(cls, text: str) -> AgentRef:
        """Read a label: the canonical form, or without scheme, or with dots for slashes."""
        bare = text[len(SCHEME) :] if text.startswith(SCHEME) else text
        return cls(tuple(bare.split("/") if "/" in bare else bare.split(".")))


@dataclass(frozen=True, slots=True)
class Label:
    """Whom a client says it is: an agent and, optionally, an instance."""

    agent: AgentRef
    instance: str | None = None

    def __str__(self) -> str:
        return self.agent.label if self.instance is None else f"{self.agent.label}~{self.instance}"

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read `LABEL[~INSTANCE]` in any spelling that clients send, percent-encoded at most once."""
        plain = unquote(text, errors="strict") if "%" in text else text
        agent, tilde, instance = plain.partition("~")
        return cls(AgentRef.parse_label(agent), check_instance(instance) if tilde else None)


def check_instance(text: str) -> str:
    """The text, when it can name an instance; ValueError otherwise."""
    if not _INSTANCE.fullmatch(text):
        raise ValueError(f"{text!r} is no instance name: 1 to 128 letters, digits, '.', '_' or '-'")
    return text


def check_seen_instance(text: str) -> str:
    """Like `check_instance`, but also lets the name of an unnamed one pass (`ip:192.0.2.7`)."""
    return text if _PEER.fullmatch(text) else check_instance(text)


def peer_instance(host: str) -> str:
    """The name of an instance that did not name itself: its peer address."""
    return f"ip:{host.partition('%')[0]}"


def source_of(host: str) -> str:
    """By what failures of a peer are counted: its address, or the /64 that one IPv6 host has to itself."""
    plain = host.partition("%")[0]
    try:
        address = IPv6Address(plain)
    except ValueError:
        return plain
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def split_userinfo(text: str) -> tuple[str, str]:
    """Split `LABEL:SECRET` at its last colon, since a label may hold `agent://`; ValueError without one."""
    if len(text) > MAX_USERINFO_BYTES or not text.isascii():
        raise ValueError("proxy credentials are longer than 512 bytes or not ASCII")
    label, colon, secret = text.rpartition(":")
    if not colon or not secret:
        raise ValueError("proxy credentials are not LABEL:SECRET")
    return label, secret
