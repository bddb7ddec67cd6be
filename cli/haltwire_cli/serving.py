"""The options of `up`, `control` and `proxy`, declared once, and what is made of them before anything is started.

This module runs on Pythons that are too old for the rest, so that it can say so.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from haltwire_cli.care import drain_for_option, hung_after_option, hung_after_s
from haltwire_cli.certificates import Pair, check, utc_now
from haltwire_cli.config import KEEP
from haltwire_cli.configuring import (
    ConfiguredCommand,
    config_in_use,
    config_option,
    tokens_of,
)
from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.limiting import limit_option
from haltwire_cli.options import (
    cidr,
    data_dir_option,
    duration,
    hold_for_option,
    listen_address,
    on_stale_option,
    proxy_url,
    server_url,
)
from haltwire_cli.plans import ControlPlan, Plan, ProxyPlan
from haltwire_cli.secret_files import KEY, secret_in

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

Command = Callable[..., Any]
Option = Callable[[Command], Command]


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)))


def _add(options: Sequence[Option]) -> Option:
    def added(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return added


common_options = _add(
    (
        data_dir_option,
        config_option,
        click.option(
            "--tls-cert",
            type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
            envvar="HALTWIRE_TLS_CERT",
            show_envvar=True,
            help="PEM file with the listeners' certificate and its chain, instead of one from our own CA; taken anew when it changes.",
        ),
        click.option(
            "--tls-key",
            type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
            envvar="HALTWIRE_TLS_KEY",
            show_envvar=True,
            help="PEM file with its key.",
        ),
        hung_after_option,
    )
)
"Where the files are, the certificate of what listens, and the care for what runs."

control_options = _add(
    (
        click.option(
            "--control-listen",
            type=listen_address,
            metavar="HOST:PORT",
            default="127.0.0.1:8081",
            show_default=True,
            envvar="HALTWIRE_CONTROL_LISTEN",
            show_envvar=True,
            help="Where operators reach the control server; with TLS unless only this machine can.",
        ),
        click.option(
            "--insecure",
            is_flag=True,
            envvar="HALTWIRE_INSECURE",
            show_envvar=True,
            help="Let the control server be reached from other machines without TLS.",
        ),
        click.option(
            "--lease",
            type=duration(0.2, 60),
            metavar="TIME",
            default="1s",
            show_default=True,
            envvar="HALTWIRE_LEASE",
            show_envvar=True,
            help="How long a proxy that hears nothing from the control server goes on passing traffic (ms, s).",
        ),
        click.option(
            "--proxy-url",
            type=proxy_url,
            metavar="URL",
            envvar="HALTWIRE_PROXY_URL",
            show_envvar=True,
            help="Where agents reach the proxy, when that is not where it listens: for what `token create`, `run` and `env` say.",
        ),
        click.option(
            "--admin-key-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            envvar="HALTWIRE_ADMIN_KEY_FILE",
            show_envvar=True,
            help="File with the secret of an admin's key, for machines that are set up before they run: hwk_ and 43 characters of base64url.",
        ),
    )
)
"A control server's."

remote_options = _add(
    (
        click.option(
            "--control",
            type=server_url,
            required=True,
            metavar="URL",
            envvar="HALTWIRE_CONTROL",
            show_envvar=True,
            help="The control server to follow, such as https://control.example:8081.",
        ),
        click.option(
            "--key-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="File with a key of the role proxy; otherwise HALTWIRE_API_KEY.",
        ),
        click.option(
            "--ca-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
            envvar="HALTWIRE_CA_FILE",
            show_envvar=True,
            help="PEM file of the CAs to trust for --control, instead of the system's.",
        ),
        click.option(
            "--insecure",
            is_flag=True,
            envvar="HALTWIRE_INSECURE",
            show_envvar=True,
            help="Follow a control server on another machine without TLS.",
        ),
    )
)
"Of a proxy alone: whom it follows."

proxy_options = _add(
    (
        click.option(
            "--proxy-listen",
            type=listen_address,
            metavar="HOST:PORT",
            default="127.0.0.1:8080",
            show_default=True,
            envvar="HALTWIRE_PROXY_LISTEN",
            show_envvar=True,
            help="Where agents reach the proxy. Port 0 takes a free one.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1, 64),
            default=_cores,
            show_default="cores, at most 8",
            envvar="HALTWIRE_WORKERS",
            show_envvar=True,
            help="Number of proxy processes; they share the proxy's port.",
        ),
        click.option(
            "--tls",
            type=click.Choice(["tunnel", "intercept"]),
            default="tunnel",
            show_default=True,
            envvar="HALTWIRE_TLS",
            show_envvar=True,
            help="Pass HTTPS through unread, or read inside it, for tokens that say nothing.",
        ),
        click.option(
            "--tunnel-host",
            "tunnel_hosts",
            multiple=True,
            metavar="GLOB",
            envvar="HALTWIRE_TUNNEL_HOST",
            show_envvar=True,
            help="Host that is never read inside, such as '*.bank.example'. Repeatable; spaces between in the variable.",
        ),
        click.option(
            "--upstream-ca",
            type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
            envvar="HALTWIRE_UPSTREAM_CA",
            show_envvar=True,
            help="PEM file of CAs to trust for upstream servers, besides the system's.",
        ),
        click.option(
            "--allow-to",
            type=cidr,
            multiple=True,
            metavar="CIDR",
            envvar="HALTWIRE_ALLOW_TO",
            show_envvar=True,
            help="Range of addresses to let agents reach although it is denied by default. Repeatable; spaces between in the variable.",
        ),
        click.option(
            "--connect-port",
            "connect_ports",
            type=click.IntRange(1, 65_535),
            multiple=True,
            metavar="PORT",
            envvar="HALTWIRE_CONNECT_PORT",
            show_envvar=True,
            help="Port that agents may CONNECT to besides 80 and 443. Without it, all when --proxy-listen is a loopback address, and else no other. Repeatable; spaces between in the variable.",
        ),
        drain_for_option,
        limit_option,
        on_stale_option,
        hold_for_option,
    )
)
"A proxy's."


def _every_option() -> tuple[click.Option, ...]:
    def everything() -> None:
        pass

    for add in (common_options, control_options, proxy_options, remote_options):
        add(everything)
    declared: dict[str, click.Option] = {
        option.name: option
        for option in everything.__click_params__  # type: ignore[attr-defined]
        if option.name != "config"
    }
    return tuple(declared.values())


ConfiguredCommand.every_option = _every_option()


def control_plan(given: Mapping[str, Any]) -> ControlPlan:
    """What the options of a control server say."""
    config, key_file = config_in_use(), given["admin_key_file"]
    return ControlPlan(
        listen=given["control_listen"],
        lease_s=given["lease"],
        insecure=given["insecure"],
        proxy_url=given["proxy_url"],
        tokens=tokens_of(config.tokens) if config else (),
        admin_key=secret_in(key_file, KEY) if key_file else None,
        hung_after_s=hung_after_s(given),
    )


def proxy_plan(given: Mapping[str, Any]) -> ProxyPlan:
    """What the options of a proxy say; a usage error when a file is not what it should be."""
    if given["upstream_ca"]:
        check_pem(given["upstream_ca"], "--upstream-ca")
    config = config_in_use()
    # What no flag can say is taken back by what a flag or a variable does say.
    source = click.get_current_context().get_parameter_source("on_stale")
    keeps = config is not None and config.keeps and source is ParameterSource.DEFAULT
    return ProxyPlan(
        listen=given["proxy_listen"],
        workers=given["workers"],
        tls=given["tls"],
        tunnel_hosts=given["tunnel_hosts"],
        upstream_ca=given["upstream_ca"],
        allow_to=given["allow_to"],
        connect_ports=given["connect_ports"],
        limits=given["limits"],
        on_stale=KEEP if keeps else given["on_stale"],
        hold_for_s=given["hold_for"],
        drain_s=given["drain_for"],
        hung_after_s=hung_after_s(given),
    )


def serve(plan: Plan, banner: Callable[[Home, Endpoints], str]) -> None:
    """Run what is planned, with its banner once it is ready, until a signal."""
    from haltwire_cli import compose

    config = config_in_use()
    if config:
        _say(f"haltwire: options also come from {config.file}.", err=True)
    home = Home(plan.data_dir)
    compose.run(
        plan,
        lambda endpoints: _say(banner(home, endpoints)),
        lambda sentence: _say(f"haltwire: {sentence}", err=True),
    )


def secret_variables() -> tuple[str, ...]:
    """The names of variables that hold agents' secrets."""
    config = config_in_use()
    return tuple(one.secret_env for one in config.tokens if one.secret_env) if config else ()


def where(home: Home) -> str:
    """What makes another command find this data directory, for a line to type."""
    return "" if home.is_default else f" --data-dir {shlex.quote(str(home.path))}"


def proxy_line(proxy: ProxyPlan, url: str | None) -> str:
    """A proxy in a banner."""
    many = "1 worker" if proxy.workers == 1 else f"{proxy.workers} workers"
    inside = "reads inside HTTPS" if proxy.tls == "intercept" else "passes HTTPS unread"
    return f"  proxy      {url}  ({many}, {inside}; takes https:// too)"


def _say(text: str, err: bool = False) -> None:
    with suppress(OSError):  # a closed terminal must not end what protects others
        click.echo(text, err=err)
        (sys.stderr if err else sys.stdout).flush()


def check_installation(command: str) -> None:
    """Failure when this machine cannot run servers, with what to do about it."""
    if sys.version_info < (3, 12):  # noqa: UP036 - the distribution installs on 3.10
        raise Failure(
            f"haltwire {command} needs Python 3.12 or newer: mitmproxy 11, the last one for older Pythons, has known holes and is never used."
        )
    from importlib.util import find_spec

    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise Failure(f"haltwire {command} needs {', '.join(missing)}: {_INSTALL}")


def check_pem(path: Path, option: str) -> None:
    """A usage error when the option's file holds no certificates."""
    import ssl

    try:
        # Not create_default_context, which opens the file that SSLKEYLOGFILE names.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=str(path))
    except (ssl.SSLError, OSError) as error:
        raise click.BadParameter(
            f"{path} holds no PEM certificates.", param_hint=f"'{option}'"
        ) from error


def own_pair(given: Mapping[str, Any]) -> Pair | None:
    """The operator's certificate and key, when there are any; a usage error when they cannot be used."""
    certificate, key = given["tls_cert"], given["tls_key"]
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key go together: give both or neither.")
    if given.get("insecure"):
        raise click.UsageError("--insecure means no TLS: leave out --tls-cert and --tls-key.")
    pair = Pair(certificate, key)
    try:
        check(pair, utc_now())
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="'--tls-cert' / '--tls-key'") from error
    return pair
