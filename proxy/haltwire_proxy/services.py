"""What every connection of a worker needs: made once, when it starts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from haltwire_proxy.agent_api import AgentApi
from haltwire_proxy.destinations import Dialer
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.guesses import Guesses
from haltwire_proxy.identity import Identity
from haltwire_proxy.inspector import Inspector
from haltwire_proxy.overload import Overload

if TYPE_CHECKING:
    from haltwire_proxy.door import Door


@dataclass(slots=True)
class Services:
    """The parts of a worker, and what it was told of TLS."""

    enforcer: Enforcer
    dialer: Dialer
    inspector: Inspector
    agent_api: AgentApi
    tls: str
    tunnel_hosts: tuple[str, ...]
    listener_tls: ssl.SSLContext | None = None
    "For clients that speak TLS to the proxy itself."
    guesses: Guesses = field(default_factory=Guesses)
    overload: Overload = field(init=False)
    doors: set[Door] = field(default_factory=set)
    closed: bool = False
    "Whether this worker stops: what was accepted a moment ago is not served any more."

    def __post_init__(self) -> None:
        self.overload = Overload(self.enforcer, self.agent_api)

    def intercepts(self, identity: Identity, host: str) -> bool:
        """Whether this agent's traffic to this host is read inside TLS."""
        if any(fnmatchcase(host, pattern) for pattern in self.tunnel_hosts):
            return False
        return (identity.tls or self.tls) == "intercept"
