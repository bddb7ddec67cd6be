"""Options that several commands share, and the kinds of value they take."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import click

from haltwire_cli.listen import Address

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_LONGEST_S = 86_400.0
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def duration(at_least: float = 0.0, at_most: float = float("inf")) -> Callable[[str], float]:
    """A kind of value: a time span such as `250ms`, `2s` or `10m`, as seconds; a bare number is seconds."""

    def convert(text: str) -> float:
        match = _DURATION.fullmatch(text)
        if not match:
            raise click.BadParameter(f"{text!r} is no time span: write 250ms, 2s, 10m, 2h or 1d.")
        seconds = float(match[1]) * _SECONDS[match[2]]
        if not at_least <= seconds <= at_most:
            raise click.BadParameter(
                f"{text} is not between {_typed(at_least)} and {_typed(at_most)}."
            )
        return seconds

    return convert


def duration_or_off(at_least: float) -> Callable[[str], float]:
    """A kind of value: a time span, or `off`, which is 0."""
    in_time = duration(at_least, _LONGEST_S)

    def convert(text: str) -> float:
        if text == "off":
            return 0.0
        if not _DURATION.fullmatch(text):
            raise click.BadParameter(
                f"{text!r} is no time span: write 250ms, 2s, 10m, 2h or 1d, or off."
            )
        return in_time(text)

    return convert


def _typed(seconds: float) -> str:
    """A time span as one would type it, in the largest unit that it fills."""
    for unit in ("d", "h", "m"):
        if seconds >= 2 * _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def plain_text(text: str) -> str:
    """What was typed, as far as it is characters."""
    # Bytes that are no UTF-8, from a terminal with another encoding, come as halves of characters.
    return text.encode(errors="surrogateescape").decode(errors="replace")


def listen_address(text: str) -> Address:
    """A kind of value: HOST:PORT."""
    try:
        return Address.parse(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def server_url(text: str) -> str:
    """A kind of value: the URL of a control server, without a slash at its end."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no URL.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.BadParameter(f"{text!r} is no URL such as http://127.0.0.1:8081.")
    if parts.username is not None or parts.query or parts.fragment:
        raise click.BadParameter(
            "a control server's URL is scheme, host and port alone; the key goes into a file."
        )
    return text.rstrip("/")


def proxy_url(text: str) -> str:
    """A kind of value: where agents reach a proxy, as scheme, host and port."""
    try:
        parts = urlsplit(text.rstrip("/"))
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or parts.path:
        raise click.BadParameter(
            f"{text!r} is not a proxy's URL: scheme, host and port, such as http://proxy.example:8080."
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise click.BadParameter(
            "a proxy's URL is scheme, host and port alone; each token adds its own name and secret."
        )
    return text.rstrip("/")


def cidr(text: str) -> str:
    """A kind of value: a range of addresses, as its canonical text."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no range of addresses, such as 10.2.0.0/16 or fd00:1::/32."
        ) from error


def default_data_dir() -> Path:
    """Where `up` keeps its files when nothing is said."""
    try:
        import platformdirs
    except ImportError:  # a machine with the [cli] extra alone, which talks to a server elsewhere
        return Path.home() / ".local" / "share" / "haltwire"
    return platformdirs.user_data_path("haltwire", appauthor=False)


data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="HALTWIRE_DATA_DIR",
    show_envvar=True,
    default=default_data_dir,
    show_default="the user's data directory",
    help="Directory with the orders, the admin key and the CA.",
)

on_stale_option = click.option(
    "--on-stale",
    type=click.Choice(["hold", "refuse"]),
    default="hold",
    show_default=True,
    envvar="HALTWIRE_ON_STALE",
    show_envvar=True,
    help="What a proxy does with new requests while it hears nothing from the control server: let them wait, or refuse them. Live connections stand still either way.",
)
hold_for_option = click.option(
    "--hold-for",
    type=duration(0, 3600),
    metavar="TIME",
    default="10s",
    show_default=True,
    envvar="HALTWIRE_HOLD_FOR",
    show_envvar=True,
    help="How long that may last (ms, s, m); then what waits is refused and live connections are cut.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the server's JSON instead of a table."
)


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which control server to ask, and with which key."""
    command = data_dir_option(command)
    command = click.option(
        "--key-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File with the key; otherwise HALTWIRE_API_KEY, otherwise the data directory's admin.key.",
    )(command)
    command = click.option(
        "--ca-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="HALTWIRE_CA_FILE",
        show_envvar=True,
        help="PEM file of CAs to trust for --url, besides the system's.",
    )(command)
    return click.option(
        "--url",
        envvar="HALTWIRE_URL",
        show_envvar=True,
        help="URL of the control server; otherwise the one that runs on the data directory.",
    )(command)
