"""up: everything with one command, and what it says when it is ready.

This module runs on Pythons that are too old for the rest, so that it can say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from haltwire_cli.configuring import ConfiguredCommand
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.plans import Plan, ProxyPlan
from haltwire_cli.serving import (
    check_installation,
    common_options,
    control_options,
    control_plan,
    own_pair,
    proxy_line,
    proxy_options,
    proxy_plan,
    secret_variables,
    serve,
    where,
)


@click.command(cls=ConfiguredCommand)
@common_options
@proxy_options
@control_options
def up(data_dir: Path, **given: Any) -> None:
    """Start the control server and the proxy; Ctrl-C stops everything."""
    check_installation("up")
    proxy = proxy_plan(given)
    plan = Plan(
        data_dir.absolute(),
        control_plan(given),
        proxy,
        own_tls=own_pair(given),
        secret_variables=secret_variables(),
    )
    serve(plan, lambda home, endpoints: _banner(proxy, home, endpoints))


def _banner(proxy: ProxyPlan, home: Home, endpoints: Endpoints) -> str:
    return "\n".join(
        (
            "haltwire is up. Ctrl-C stops it; orders in force outlive it.",
            proxy_line(proxy, endpoints.proxy_url),
            f"  control    {endpoints.control_url}",
            f"  CA file    {endpoints.ca_file}",
            f"  admin key  {home.admin_key}",
            "Next, in another terminal:",
            f"  haltwire run{where(home)} acme/dev/hello -- curl -s https://example.com",
            f"  haltwire kill{where(home)} acme/dev/hello",
        )
    )
