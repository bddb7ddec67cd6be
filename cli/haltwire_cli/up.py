"""up: everything with one command. Its options, and what it says when it is ready.

This module runs on Pythons that are too old for the rest, so that it can say so.
"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import click

from haltwire_cli.certificates import Pair, check, utc_now
from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.limiting import limit_option
from haltwire_cli.listen import Address
from haltwire_cli.options import (
    cidr,
    data_dir_option,
    duration,
    hold_for_option,
    listen_address,
    on_stale_option,
)

_MODULES = (
    "aiohttp",
    "httptools",
    "mitmproxy",
    "platformdirs",
    "prometheus_client",
    "pydantic",
    "sqlite_utils",
    "uvloop",
)
_INSTALL = "pip install 'haltwire[server]'"


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)))


@click.command()
@data_dir_option
@click.option(
    "--proxy-listen",
    type=listen_address,
    metavar="HOST:PORT",
    default="127.0.0.1:8080",
    show_default=True,
    envvar="HALTWIRE_PROXY_LISTEN",
    show_envvar=True,
    help="Where agents reach the proxy. Port 0 takes a free one.",
)
@click.option(
    "--control-listen",
    type=listen_address,
    metavar="HOST:PORT",
    default="127.0.0.1:8081",
    show_default=True,
    envvar="HALTWIRE_CONTROL_LISTEN",
    show_envvar=True,
    help="Where operators reach the control server; with TLS unless only this machine can.",
)
@click.option(
    "--tls-cert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
    envvar="HALTWIRE_TLS_CERT",
    show_envvar=True,
    help="PEM file with the listeners' certificate and its chain, instead of one from our own CA; taken anew when it changes.",
)
@click.option(
    "--tls-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
    envvar="HALTWIRE_TLS_KEY",
    show_envvar=True,
    help="PEM file with its key.",
)
@click.option(
    "--insecure",
    is_flag=True,
    envvar="HALTWIRE_INSECURE",
    show_envvar=True,
    help="Let the control server be reached from other machines without TLS.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=_cores,
    show_default="cores, at most 8",
    envvar="HALTWIRE_WORKERS",
    show_envvar=True,
    help="Number of proxy processes; they share the proxy's port.",
)
@click.option(
    "--lease",
    type=duration(0.2, 60),
    metavar="TIME",
    default="1s",
    show_default=True,
    envvar="HALTWIRE_LEASE",
    show_envvar=True,
    help="How long a proxy that hears nothing from the control server goes on passing traffic (ms, s).",
)
@on_stale_option
@hold_for_option
@click.option(
    "--tls",
    type=click.Choice(["tunnel", "intercept"]),
    default="tunnel",
    show_default=True,
    envvar="HALTWIRE_TLS",
    show_envvar=True,
    help="Pass HTTPS through unread, or read inside it, for tokens that say nothing.",
)
@click.option(
    "--tunnel-host",
    "tunnel_hosts",
    multiple=True,
    metavar="GLOB",
    envvar="HALTWIRE_TUNNEL_HOST",
    show_envvar=True,
    help="Host that is never read inside, such as '*.bank.example'. Repeatable; spaces between in the variable.",
)
@click.option(
    "--upstream-ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
    envvar="HALTWIRE_UPSTREAM_CA",
    show_envvar=True,
    help="PEM file of CAs to trust for upstream servers, besides the system's.",
)
@click.option(
    "--allow-to",
    type=cidr,
    multiple=True,
    metavar="CIDR",
    envvar="HALTWIRE_ALLOW_TO",
    show_envvar=True,
    help="Range of addresses to let agents reach although it is denied by default. Repeatable; spaces between in the variable.",
)
@click.option(
    "--connect-port",
    "connect_ports",
    type=click.IntRange(1, 65_535),
    multiple=True,
    metavar="PORT",
    envvar="HALTWIRE_CONNECT_PORT",
    show_envvar=True,
    help="Port that agents may CONNECT to besides 80 and 443. Without it, all when --proxy-listen is a loopback address, and else no other. Repeatable; spaces between in the variable.",
)
@limit_option
def up(
    data_dir: Path,
    proxy_listen: Address,
    control_listen: Address,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    workers: int,
    lease: float,
    on_stale: str,
    hold_for: float,
    tls: str,
    tunnel_hosts: tuple[str, ...],
    upstream_ca: Path | None,
    allow_to: tuple[str, ...],
    connect_ports: tuple[int, ...],
    limits: tuple[str, ...],
) -> None:
    """Start the control server and the proxy; Ctrl-C stops everything."""
    _check_installation()
    if upstream_ca:
        _check_pem(upstream_ca)
    own_tls = _pair(tls_cert, tls_key, insecure)
    from haltwire_cli import serve

    plan = serve.Plan(
        data_dir.absolute(),
        proxy_listen,
        control_listen,
        workers,
        lease,
        tls,
        tunnel_hosts,
        upstream_ca,
        allow_to,
        own_tls,
        insecure,
        connect_ports,
        limits,
        on_stale,
        hold_for,
    )
    home = Home(plan.data_dir)

    def ready(endpoints: Endpoints) -> None:
        _say(_banner(workers, tls, home, endpoints))

    serve.up(plan, ready, lambda sentence: _say(f"haltwire: {sentence}", err=True))


def _say(text: str, err: bool = False) -> None:
    with suppress(OSError):  # a closed terminal must not end what protects others
        click.echo(text, err=err)
        (sys.stderr if err else sys.stdout).flush()


def _check_installation() -> None:
    if sys.version_info < (3, 12):  # noqa: UP036 - the distribution installs on 3.10
        raise Failure(
            "haltwire up needs Python 3.12 or newer: mitmproxy 11, the last one for older Pythons, has known holes and is never used."
        )
    from importlib.util import find_spec

    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise Failure(f"haltwire up needs {', '.join(missing)}: {_INSTALL}")


def _check_pem(path: Path) -> None:
    import ssl

    try:
        # Not create_default_context, which opens the file that SSLKEYLOGFILE names.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=str(path))
    except (ssl.SSLError, OSError) as error:
        raise click.BadParameter(
            f"{path} holds no PEM certificates.", param_hint="'--upstream-ca'"
        ) from error


def _pair(certificate: Path | None, key: Path | None, insecure: bool) -> Pair | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key go together: give both or neither.")
    if insecure:
        raise click.UsageError("--insecure means no TLS: leave out --tls-cert and --tls-key.")
    pair = Pair(certificate, key)
    try:
        check(pair, utc_now())
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="'--tls-cert' / '--tls-key'") from error
    return pair


def _banner(workers: int, tls: str, home: Home, endpoints: Endpoints) -> str:
    many = "1 worker" if workers == 1 else f"{workers} workers"
    inside = "reads inside HTTPS" if tls == "intercept" else "passes HTTPS unread"
    where = "" if home.is_default else f" --data-dir {shlex.quote(str(home.path))}"
    return "\n".join(
        (
            "haltwire is up. Ctrl-C stops it; orders in force outlive it.",
            f"  proxy      {endpoints.proxy_url}  ({many}, {inside}; takes https:// too)",
            f"  control    {endpoints.control_url}",
            f"  CA file    {endpoints.ca_file}",
            f"  admin key  {home.admin_key}",
            "Next, in another terminal:",
            f"  haltwire run{where} acme/dev/hello -- curl -s https://example.com",
            f"  haltwire kill{where} acme/dev/hello",
        )
    )
