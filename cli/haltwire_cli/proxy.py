"""proxy: the workers alone, which follow a control server elsewhere. Without its word they let nothing pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from haltwire_cli.configuring import ConfiguredCommand
from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints
from haltwire_cli.listen import is_exposed
from haltwire_cli.plans import Plan, ProxyPlan, Remote
from haltwire_cli.secret_files import KEY, secret_in, secret_in_variable
from haltwire_cli.serving import (
    check_installation,
    check_pem,
    common_options,
    own_pair,
    proxy_line,
    proxy_options,
    proxy_plan,
    remote_options,
    serve,
)

_KEY_VARIABLE = "HALTWIRE_API_KEY"


@click.command(cls=ConfiguredCommand)
@remote_options
@common_options
@proxy_options
def proxy(data_dir: Path, **given: Any) -> None:
    """Start a proxy alone, which follows the control server at --control.

    It starts without it, too: nothing passes until the control server answers, and again when that
    has been silent for one lease. `haltwire key create NAME --role proxy` makes its key.
    """
    check_installation("proxy")
    half = proxy_plan(given)
    plan = Plan(data_dir.absolute(), None, half, remote=_remote(given), own_tls=own_pair(given))
    serve(plan, lambda _, endpoints: _banner(half, given["control"], endpoints))


def _remote(given: dict[str, Any]) -> Remote:
    url, ca_file = given["control"], given["ca_file"]
    if is_exposed(url) and not given["insecure"]:
        raise click.UsageError(
            f"{url} is not encrypted: whoever is on the way could take the key, and tell this proxy that nobody is killed. Use https://, or say --insecure."
        )
    if ca_file is not None:
        check_pem(ca_file, "--ca-file")
    if given["key_file"] is not None:
        return Remote(url, secret_in(given["key_file"], KEY), ca_file)
    if os.environ.get(_KEY_VARIABLE):
        return Remote(url, secret_in_variable(_KEY_VARIABLE, KEY), ca_file)
    raise Failure(
        f"a proxy shows the control server a key: give its file with --key-file, or set {_KEY_VARIABLE}. `haltwire key create NAME --role proxy` makes one there."
    )


def _banner(half: ProxyPlan, control: str, endpoints: Endpoints) -> str:
    return "\n".join(
        (
            "The haltwire proxy is up. Ctrl-C stops it.",
            proxy_line(half, endpoints.proxy_url),
            f"  follows    {control}: nothing passes without its word",
            f"  CA file    {endpoints.ca_file}  (agents get it at http://haltwire.internal/ca.pem through this proxy)",
        )
    )
