"""haltwire.toml: the flags' names as keys, and `[[tokens]]`. What it says, or the sentence that tells what is wrong.

One file may serve `up`, `control` and `proxy`: each takes what it has a flag for. What a value may be is
said by the flags themselves, so here only its shape is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from haltwire.wire.selectors import Selector, parse_typed

NAME = "haltwire.toml"
FLAG, LIST, FILE, TEXT = "flag", "list", "file", "text"
"The shapes of an option: true or false; several values; a path, relative to the file's own folder; anything else."
KEEP = "keep"
_ON_STALE = "on-stale"
_TOKEN_KEYS = ("selector", "tls", "secret_file", "secret_env")


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One of `[[tokens]]`: an agent's secret that is known before the control server starts."""

    selector: Selector
    tls: str | None
    secret_file: Path | None
    secret_env: str | None

    @property
    def source(self) -> str:
        """Where its secret is, for a sentence."""
        return str(self.secret_file) if self.secret_file else f"the variable {self.secret_env}"


@dataclass(frozen=True, slots=True)
class Config:
    """What a file says."""

    file: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    "By the flag's name without dashes: text, a list of texts, or for a flag without a value True or False."
    keeps: bool = False
    "Whether on-stale is `keep`, which no flag can say."
    tokens: tuple[TokenEntry, ...] = ()


def read(text: str, file: Path, shapes: Mapping[str, str]) -> Config:
    """What the text of a file says; `shapes` are those of all options. ValueError is a sentence without its full stop."""
    import tomllib  # Python 3.11; whoever has an older one is told so elsewhere

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is no TOML: {error}") from error
    try:
        tokens = _tokens(document.pop("tokens", []), file.parent)
        keeps = _ON_STALE in shapes and document.get(_ON_STALE) == KEEP
        if keeps:
            del document[_ON_STALE]
        for key in document:
            if key not in shapes:
                raise ValueError(_unknown(key, (*shapes, "tokens")))
        options = {key: _value(key, value, shapes[key], file) for key, value in document.items()}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return Config(file, options, keeps, tokens)


def _value(key: str, value: object, shape: str, file: Path) -> Any:
    if shape == FLAG:
        if not isinstance(value, bool):
            raise ValueError(f"{key} is true or false, without quotes, not {value!r}")
        return value
    if shape == LIST:
        values = value if isinstance(value, list) else [value]
        return [_text(key, one) for one in values]
    if isinstance(value, list):
        raise ValueError(f"{key} has one value, not a list")
    text = _text(key, value)
    # A path of a file that is read wherever it lies means the same from every working directory.
    return str(file.parent / text) if shape == FILE else text


def _text(key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{key} is a text or a number, not {_toml_name(value)}")
    return str(value)


def _tokens(entries: object, folder: Path) -> tuple[TokenEntry, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("tokens are written as [[tokens]], each with a selector and a secret_file")
    return tuple(_token(number, entry, folder) for number, entry in enumerate(entries, 1))


def _token(number: int, entry: Mapping[str, object], folder: Path) -> TokenEntry:
    where = f"[[tokens]] number {number}"
    for key, value in entry.items():
        if key not in _TOKEN_KEYS:
            raise ValueError(f"{where}: {_unknown(key, _TOKEN_KEYS)}")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {key} is a text, not {_toml_name(value)}")
    given = {key: str(value) for key, value in entry.items()}
    if "selector" not in given:
        raise ValueError(f"{where} says no selector")
    try:
        selector = parse_typed(given["selector"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if given.get("tls") not in (None, "tunnel", "intercept"):
        raise ValueError(f"{where}: tls is tunnel or intercept, not {given['tls']!r}")
    if ("secret_file" in given) == ("secret_env" in given):
        raise ValueError(
            f"{where}, for {selector}, needs its secret: one of secret_file, the path of a file that holds it, and secret_env, the name of a variable"
        )
    secret_file = folder / given["secret_file"] if "secret_file" in given else None
    return TokenEntry(selector, given.get("tls"), secret_file, given.get("secret_env"))


def _unknown(key: str, known: Iterable[str]) -> str:
    near = get_close_matches(key, list(known), n=1)
    return f"there is no {key!r}" + (f": perhaps {near[0]!r} is meant" if near else "")


def _toml_name(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else repr(value)
