"""Secrets that somebody else has put down for us: read, checked for their form, never part of a sentence."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from haltwire_cli.failures import NOT_ALLOWED, Failure

AGENT, KEY = "hwa", "hwk"
_MEANT = {AGENT: "an agent's token", KEY: "a key"}


def secret_in(path: Path, prefix: str) -> str:
    """The secret in a file that no other user of this machine may read; Failure otherwise."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(4096)
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.", NOT_ALLOWED) from error
    if mode & stat.S_IROTH:
        raise Failure(
            f"{path} holds a secret that every user of this machine can read: chmod 600 it (in Kubernetes: defaultMode: 0440; in Compose: mode: 0400).",
            NOT_ALLOWED,
        )
    return checked_secret(text, prefix, str(path))


def secret_in_variable(name: str, prefix: str) -> str:
    """The secret in an environment variable; Failure when there is none."""
    if not os.environ.get(name):
        raise Failure(f"the variable {name} holds no secret: it is not set.", NOT_ALLOWED)
    return checked_secret(os.environ[name], prefix, name)


def checked_secret(text: str, prefix: str, where: str) -> str:
    """The secret in a text; Failure when it has another form."""
    secret = text.strip()
    if re.fullmatch(rf"{prefix}_[A-Za-z0-9_-]{{43}}", secret):
        return secret
    for other, meant in _MEANT.items():
        if other != prefix and secret.startswith(f"{other}_"):
            raise Failure(f"{where} holds {meant}, and this needs {_MEANT[prefix]}.", NOT_ALLOWED)
    raise Failure(
        f"{where} does not hold {_MEANT[prefix]}: that is {prefix}_ and 32 random bytes as 43 characters of base64url.",
        NOT_ALLOWED,
    )
