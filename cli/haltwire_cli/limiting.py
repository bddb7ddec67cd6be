"""The option `--limit`: how much of a proxy worker anybody may take. What limits there are, the proxy knows."""

from __future__ import annotations

import click
from haltwire_proxy.limits import described, parse


def _checked(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    try:
        parse(texts)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error
    return texts


limit_option = click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_checked,
    envvar="HALTWIRE_LIMIT",
    show_envvar=True,
    help=f"Bound on what one worker takes. Repeatable; spaces between in the variable. {described()}.",
)
