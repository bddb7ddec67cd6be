"""The `haltwire` command. Each command's module is imported when it is asked for, so that a kill starts fast."""

from __future__ import annotations

import importlib
from typing import Any

import click
from haltwire import __version__

COMMANDS = {
    "up": "haltwire_cli.up:up",
    "control": "haltwire_cli.control:control",
    "proxy": "haltwire_cli.proxy:proxy",
    "run": "haltwire_cli.run:run",
    "env": "haltwire_cli.env:env",
    "kill": "haltwire_cli.orders:kill",
    "resume": "haltwire_cli.orders:resume",
    "kills": "haltwire_cli.agents:kills",
    "list": "haltwire_cli.agents:list_agents",
    "show": "haltwire_cli.agents:show",
    "report": "haltwire_cli.report:report",
    "note": "haltwire_cli.report:note",
    "events": "haltwire_cli.events:events",
    "audit": "haltwire_cli.events:audit",
    "token": "haltwire_cli.access:token",
    "key": "haltwire_cli.access:key",
    "demo": "haltwire_cli.demo:demo",
    "mesh": "haltwire_cli.main:mesh",
}
"Where each command lives, in the order of --help."
_MESH = ("kill", "resume", "list", "events")


class LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

    def __init__(self, *args: Any, lazy: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of their table."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in self._lazy:
            return None
        module, _, name = self._lazy[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="haltwire")
def cli() -> None:
    """Stop AI agents at the network, whatever their code does.

    Start everything with `haltwire up`, an agent with `haltwire run AGENT -- CMD`, and stop it with
    `haltwire kill AGENT`.

    Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 not allowed, 5 ordered but not proven
    stopped everywhere, 6 still killed.
    """


@click.group(cls=LazyGroup, lazy={name: COMMANDS[name] for name in _MESH}, hidden=True)
def mesh() -> None:
    """The same commands under the name that AXME's users type."""
