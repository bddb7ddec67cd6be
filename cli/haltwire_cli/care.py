"""How long what runs may be silent, and how long what stops may take: options of all commands that start processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from haltwire_cli.options import duration, duration_or_off

LEAST_HUNG_S = 2.0
"Less, and a machine that is busy for a moment would have its processes killed."

hung_after_option = click.option(
    "--hung-after",
    type=duration_or_off(LEAST_HUNG_S),
    metavar="TIME|off",
    show_default="two leases, at least 2s",
    envvar="HALTWIRE_HUNG_AFTER",
    show_envvar=True,
    help="A process of ours that does not answer for this long is killed and started again; also one that somebody has stopped to look into it, unless this is off.",
)
drain_for_option = click.option(
    "--drain-for",
    type=duration(0, 3600),
    metavar="TIME",
    default="5s",
    show_default=True,
    envvar="HALTWIRE_DRAIN_FOR",
    show_envvar=True,
    help="How long what is under way may go on after the first Ctrl-C or SIGTERM; orders are obeyed until the end. A second one stops at once.",
)


def hung_after_s(given: Mapping[str, Any]) -> float | None:
    """How long a process may not answer, as the options say; None for ever."""
    if given["hung_after"] is not None:
        return float(given["hung_after"]) or None
    # A proxy alone does not know its lease before it runs.
    lease_s: float = given.get("lease", 0.0)
    return max(LEAST_HUNG_S, 2 * lease_s)
