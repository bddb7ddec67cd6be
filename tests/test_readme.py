"""Every `haltwire ...` that our texts show is taken by the command line's own parser."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path

import click
import pytest
from haltwire_cli.main import cli

ROOT = Path(__file__).parent.parent
TEXTS = ("README.md", "SECURITY.md", "CHANGELOG.md")
AT_LEAST = {"README.md": 25, "SECURITY.md": 3, "CHANGELOG.md": 12}
"Fewer would mean that this test no longer finds them."


def shown(text: str) -> list[str]:
    """The commands of console lines and of inline code."""
    found = re.findall(r"^\$ (haltwire\b.*)$|`(haltwire [^`]+)`", text, re.MULTILINE)
    return [console or inline for console, inline in found]


def words(command: str) -> list[str]:
    """What the shell would give to the command: no comment, nothing beyond a pipe or `>`."""
    command = re.sub(r"\$\([^)]*\)", "VALUE", command).replace("KILL_ID", "KZWKNV7T65NVG")
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|>;&")
    lexer.whitespace_split = True
    taken: list[str] = []
    for word in lexer:
        if set(word) <= set("|>;&"):
            break
        taken.append(word)
    return taken[1:]


def parse(arguments: list[str]) -> None:
    """Parse as `haltwire` would, down to the last command, and run nothing."""
    # --help, or a text that names the command and leaves out what it is about.
    with suppress(
        click.exceptions.Exit, click.MissingParameter, click.exceptions.NoArgsIsHelpError
    ):
        _parse(cli, "haltwire", arguments, None)


def _parse(
    command: click.Command, name: str, arguments: list[str], parent: click.Context | None
) -> None:
    with command.make_context(name, list(arguments), parent=parent) as context:
        if isinstance(command, click.Group):
            rest = [*context._protected_args, *context.args]
            name, found, rest = command.resolve_command(context, rest)
            _parse(found, name, rest, context)


COMMANDS = [
    pytest.param(command, id=f"{name}: {command}")
    for name in TEXTS
    for command in shown((ROOT / name).read_text())
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_shown_is_one_that_is_taken(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HALTWIRE_DATA_DIR", str(tmp_path))
    for file in ("FILE", "ca.pem"):
        (tmp_path / file).write_text("")
    parse(words(command))


@pytest.mark.parametrize("name", TEXTS)
def test_commands_are_found(name):
    assert len(shown((ROOT / name).read_text())) >= AT_LEAST[name]


@pytest.mark.parametrize(
    "wrong",
    [
        "haltwire --url https://HOST:8081 --ca-file ca.pem list",  # the options are the command's
        "haltwire stop mailer",
        "haltwire kill mailer --forced",
        "haltwire kill mailer --mode slowly",
        "haltwire kills mailer",
        "haltwire token invent acme/prod/mailer",
        "haltwire audit verify --against nowhere.jsonl",
    ],
)
def test_one_that_is_wrong_would_be_seen(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(click.UsageError):
        parse(words(wrong))


def test_the_shell_s_part_is_cut():
    assert words("haltwire kill 'acme/prod/*'   # a glob") == ["kill", "acme/prod/*"]
    assert words("haltwire env a/b/c --format dotenv > mailer.env")[-1] == "dotenv"
    assert words("haltwire env $(cat a b) | grep PROXY") == ["env", "VALUE"]
