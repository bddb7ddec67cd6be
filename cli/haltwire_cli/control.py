"""control: the control server alone, for proxies on other machines, and what it says when it is ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from haltwire_cli.configuring import ConfiguredCommand
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.plans import Plan
from haltwire_cli.serving import (
    check_installation,
    common_options,
    control_options,
    control_plan,
    own_pair,
    secret_variables,
    serve,
    where,
)


@click.command(cls=ConfiguredCommand)
@common_options
@control_options
def control(data_dir: Path, **given: Any) -> None:
    """Start the control server alone; proxies elsewhere follow it.

    `haltwire key create NAME --role proxy` makes a proxy's key and prints the line that starts it.
    """
    check_installation("control")
    plan = Plan(
        data_dir.absolute(),
        control_plan(given),
        None,
        own_tls=own_pair(given),
        secret_variables=secret_variables(),
    )
    serve(plan, _banner)


def _banner(home: Home, endpoints: Endpoints) -> str:
    lines = [
        "The haltwire control server is up. Ctrl-C stops it; orders in force outlive it.",
        f"  control    {endpoints.control_url}",
        f"  CA file    {endpoints.ca_file}",
        f"  admin key  {home.admin_key}",
        "Next, in another terminal, make a key for a proxy; it prints the line that starts one:",
        f"  haltwire key create{where(home)} edge --role proxy",
    ]
    return "\n".join(lines)
