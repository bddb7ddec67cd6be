"""Every `haltwire …` command in the documents is one that the program takes: its options and arguments are read by its own parser.

With `haltwire --url … list` in the README, which was there once, this fails with "No such option '--url'".
"""

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest
from haltwire_cli.main import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "SECURITY.md", "CHANGELOG.md")
FEWEST = 30
"Commands in all documents together: a test that finds none proves nothing."
FILES = ("FILE", "ca.pem", "haltwire.toml", "proxy.key")
"What commands are told to read."
PLACEHOLDERS = {"KILL_ID": "K0123456789AB"}


def commands() -> list[tuple[str, str]]:
    """(document, command) of each console line and each piece of inline code."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        consoles = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
        lines = [
            line[2:] for console in consoles for line in console.splitlines() if line[:2] == "$ "
        ]
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += re.findall(r"`(haltwire [^`]+)`", prose)
        found += [(document, line) for line in lines if line.startswith("haltwire ")]
    return found


def words_of(command: str) -> list[str]:
    """Its words as a shell would hand them on, without comment, pipe and redirection."""
    words = shlex.split(command, comments=True)[1:]
    for mark in (">", "|", "&&"):
        if mark in words:
            words = words[: words.index(mark)]
    return [PLACEHOLDERS.get(word, word) for word in words if word not in ("…", "...")]


def parse(words: list[str]) -> str:
    """Read a command line as the program does, down to the command that it names; that command's path."""
    group: click.Command = cli
    parent: click.Context | None = None
    path = []
    with contextlib.ExitStack() as opened:
        while True:
            try:
                context = group.make_context(group.name, list(words), parent=parent)
            except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
                return " ".join(path)
            except click.MissingParameter:
                return " ".join(path)  # prose names commands without their arguments
            opened.enter_context(context.scope())  # closes the files that its options have opened
            if not isinstance(group, click.Group):
                return " ".join(path)
            rest = context._protected_args + context.args
            name, command, words = group.resolve_command(context, rest)
            assert command is not None
            path.append(name or "")
            group, parent = command, context


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_command_in_the_documents_is_taken(document, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HALTWIRE_URL", raising=False)
    for name in FILES:
        (tmp_path / name).write_text("")
    assert parse(words_of(command))


def test_the_commands_are_found_at_all():
    assert len(commands()) >= FEWEST


@pytest.mark.parametrize(
    "wrong",
    ["--url https://HOST:8081 list", "halt mailer", "kill mailer --moed cut", "list a b"],
)
def test_a_wrong_command_is_told_apart(wrong):
    with pytest.raises(click.UsageError):
        parse(words_of(f"haltwire {wrong}"))
