"""The command as a whole: everything has help, nothing heavy is imported for it, aliases lead to the same."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from haltwire_cli.main import COMMANDS, cli
from haltwire_cli.up import up


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(cli))


@pytest.mark.parametrize("name", ALL)
def test_every_command_and_every_option_has_help(name):
    command = ALL[name]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.name}"


def test_every_option_of_up_shows_its_variable():
    context = click.Context(up)
    for option in up.params:
        assert option.envvar == f"HALTWIRE_{option.opts[0][2:].upper().replace('-', '_')}"
        assert f"env var: {option.envvar}" in option.get_help_record(context)[1]


def test_help_is_fast_because_it_imports_no_server():
    code = (
        "import sys; from haltwire_cli.__main__ import main\n"
        "sys.argv = ['haltwire', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'aiohttp', 'mitmproxy', 'pydantic', 'asyncio', 'sqlite_utils', 'uvloop'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert (f"\n  {name} " in done.stdout) is (name != "mesh")


def test_nothing_that_does_not_exist_yet_is_offered():
    offered = "\n".join(c.get_help(click.Context(c)) for c in ALL.values())
    for later in (
        "--jail",
        "--store",
        "doctor",
        "drill",
    ):
        assert later not in offered


@pytest.mark.parametrize("name", ["kill", "resume", "list", "events"])
def test_mesh_commands_are_the_same_commands(name):
    assert ALL[f"mesh {name}"] is ALL[name]


def test_without_click_the_line_to_install_is_said():
    code = "import sys; sys.modules['click'] = None; from haltwire_cli.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'haltwire[server]'\n")
    assert done.stderr.count("\n") == 1


def test_a_misspelt_command_is_a_usage_error(haltwire):
    result = haltwire("kil", "x")
    assert result.exit_code == 2
    assert "No such command 'kil'" in result.stderr


def test_version(haltwire):
    assert haltwire("--version").output == "haltwire, version 0.1.0\n"


def test_an_answer_that_cannot_be_written_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "haltwire_cli", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "Error: the answer could not be written: No space left on device.\n"
