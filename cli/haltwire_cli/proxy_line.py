"""The line that starts a proxy on another machine, and what that machine needs for it."""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from haltwire_cli.api import Api
from haltwire_cli.listen import LOOPBACK, Address

KEY_FILE, CA_FILE = "proxy.key", "ca.pem"


@dataclass(frozen=True, slots=True)
class ProxyLine:
    """What to type on the proxy's machine."""

    command: str
    ca_file: Path | None
    "The file to take there as ca.pem; None when none is needed."
    note: str | None

    def told(self, secret: str) -> list[str]:
        """The lines to print below a new key."""
        lines = ["On the proxy's machine, type:", f"  (umask 077; echo {secret} > {KEY_FILE})"]
        if self.ca_file is not None:
            lines.insert(0, f"Take {self.ca_file} to the proxy's machine as {CA_FILE}.")
        lines.append(f"  {self.command}")
        if self.note:
            lines.append(self.note)
        return lines


def proxy_line(api: Api, name: str, ca_file: Path | None) -> ProxyLine:
    """The line for a proxy that follows this control server."""
    parts = urlsplit(api.url)
    host, ours = parts.hostname or "", None
    note = None
    if parts.scheme == "https" and api.is_local:
        # Only a server that other machines reach has TLS, and its certificate has this machine's name.
        host = socket.gethostname() if host in LOOPBACK else host
        local = api.home.endpoints()
        ours = Path(local.ca_file) if local and not local.control_certificate else None
    elif parts.scheme == "https":
        ours = ca_file
    elif host in LOOPBACK:
        note = f"Only this machine can call {host}: for a proxy on another one, start the control server with --control-listen 0.0.0.0:{parts.port or 8081}, and it will have TLS."
    netloc = str(Address(host, parts.port)) if parts.port else host
    url = f"{parts.scheme}://{netloc}{parts.path}"
    words = ["haltwire", "proxy", "--control", url, "--key-file", KEY_FILE]
    if ours is not None:
        words += ["--ca-file", CA_FILE]
    if host in LOOPBACK:
        words += ["--data-dir", f"proxy-{name}"]  # a control server here has the usual one
    elif parts.scheme == "http":
        words.append("--insecure")
    return ProxyLine(shlex.join(words), ours, note)
