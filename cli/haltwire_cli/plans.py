"""What `up`, `control` and `proxy` were told, as values: a control server, the proxy's workers, or both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from haltwire_cli.certificates import Pair
from haltwire_cli.listen import Address


@dataclass(frozen=True, slots=True)
class ConfiguredToken:
    """An agent's token that is known before the control server starts: never the secret."""

    selector: str
    tls: str | None
    digest: str


@dataclass(frozen=True, slots=True)
class ControlPlan:
    """A control server."""

    listen: Address
    lease_s: float
    insecure: bool
    "Whether it may be reached from other machines without TLS."
    proxy_url: str | None = None
    "Where agents find the proxy, when that runs elsewhere."
    tokens: tuple[ConfiguredToken, ...] = ()
    admin_key: str | None = field(default=None, repr=False)
    "The secret of an admin's key that somebody else has made."
    hung_after_s: float | None = None
    "How long it may not answer before it is killed and started again; None for ever."


@dataclass(frozen=True, slots=True)
class ProxyPlan:
    """The workers of one proxy."""

    listen: Address
    workers: int
    tls: str
    tunnel_hosts: tuple[str, ...] = ()
    upstream_ca: Path | None = None
    allow_to: tuple[str, ...] = ()
    connect_ports: tuple[int, ...] = ()
    limits: tuple[str, ...] = ()
    on_stale: str = "hold"
    "What it does beyond its lease, for `hold_for_s` at most; `keep` lets traffic pass."
    hold_for_s: float = 10.0
    drain_s: float = 0.0
    "How long what is under way may go on when it is to stop."
    hung_after_s: float | None = None
    "As for a control server."


@dataclass(frozen=True, slots=True)
class Remote:
    """The control server of a proxy that runs without one of its own."""

    url: str
    key: str = field(repr=False)
    ca_file: Path | None = None
    "Whom alone to take for it, when its URL is https; otherwise the system's roots say who it is."


@dataclass(frozen=True, slots=True)
class Plan:
    """What one command starts. Either half may be missing; a proxy alone has a `remote`."""

    data_dir: Path
    control: ControlPlan | None
    proxy: ProxyPlan | None
    remote: Remote | None = None
    own_tls: Pair | None = None
    "The operator's certificate and key; otherwise we have our own."
    secret_variables: tuple[str, ...] = ()
    "Variables that hold secrets, and so are no child's."
