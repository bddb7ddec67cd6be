"""Commands that read haltwire.toml: flags come before variables, those before the file, and that before the defaults."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from haltwire_cli.config import FILE, FLAG, LIST, NAME, TEXT, Config, TokenEntry, read
from haltwire_cli.failures import Failure
from haltwire_cli.plans import ConfiguredToken
from haltwire_cli.secret_files import AGENT, secret_in, secret_in_variable

_META = "haltwire_cli.config"
_DATA_DIR = "data_dir"

config_option = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="HALTWIRE_CONFIG",
    show_envvar=True,
    expose_value=False,
    help=f"TOML file with options by their names, and agents' tokens; otherwise {NAME} in the working directory, otherwise in the data directory.",
)


class ConfiguredCommand(click.Command):
    """A command whose options may also come from a file."""

    every_option: Iterable[click.Option] = ()
    "The options of all commands that a file may serve; set where they are declared."

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the file first, so that what it says stands where click looks for defaults."""
        # An older Python has no TOML, and the command will say that it cannot run there.
        config = None
        if not ctx.resilient_parsing and sys.version_info >= (3, 12):
            config = self._config(ctx, list(args))
        if config is not None:
            ctx.meta[_META] = config
            names = {key_of(option): option.name for option in self.params if _has_flag(option)}
            ctx.default_map = {
                name: config.options[key] for key, name in names.items() if key in config.options
            }
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            name = error.param.name if error.param else None
            if config and name and _source(ctx, name) is ParameterSource.DEFAULT_MAP:
                raise click.UsageError(
                    f"{config.file}: {key_of(error.param)}: {error.message}", ctx
                ) from error
            raise

    def _config(self, ctx: click.Context, args: list[str]) -> Config | None:
        given, _, _ = self.make_parser(ctx).parse_args(args)
        helping = self.get_help_option(ctx)
        if helping is not None and given.get(helping.name):
            return None
        by_name = {option.name: option for option in self.params}
        named = by_name["config"].consume_value(ctx, given)[0]
        data_dir = by_name[_DATA_DIR].consume_value(ctx, given)[0]
        data_dir = Path(data_dir() if callable(data_dir) else data_dir).absolute()
        if isinstance(named, (str, Path)):
            return self._read(Path(named).absolute())
        found = _found(data_dir)
        if found is None:
            return None
        config = self._read(found)
        _check_found(config, found.parent == data_dir)
        return config

    def _read(self, file: Path) -> Config:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{file} is no TOML: it is not UTF-8.") from error
        except OSError as error:
            raise click.UsageError(f"{file} cannot be read: {error.strerror}.") from error
        try:
            return read(text, file, {key_of(o): _shape(o) for o in self.every_option})
        except ValueError as error:
            raise click.UsageError(f"{error}.") from error


def config_in_use() -> Config | None:
    """The file that the command at work has read."""
    config: Config | None = click.get_current_context().meta.get(_META)
    return config


def tokens_of(entries: Iterable[TokenEntry]) -> tuple[ConfiguredToken, ...]:
    """The tokens with what is stored of their secrets; Failure when a secret cannot be had, or is there twice."""
    found: dict[str, ConfiguredToken] = {}
    for entry in entries:
        if entry.secret_file is not None:
            secret = secret_in(entry.secret_file, AGENT)
        else:
            secret = secret_in_variable(str(entry.secret_env), AGENT)
        digest = sha256(secret.encode()).hexdigest()
        if digest in found:
            raise Failure(
                f"the secret in {entry.source} is given to {found[digest].selector} and to {entry.selector}: whoever holds it could be either, so give each one of its own."
            )
        found[digest] = ConfiguredToken(str(entry.selector), entry.tls, digest)
    return tuple(found.values())


def key_of(option: click.Parameter | None) -> str:
    """What an option is called in a file."""
    flags = option.opts if option else ()
    return max(flags, key=len, default="").lstrip("-")


def _found(data_dir: Path) -> Path | None:
    """The file that is read when none is named."""
    for folder in (Path.cwd, lambda: data_dir):
        with suppress(
            OSError
        ):  # a working directory that is gone, or one that we may not look into
            if (folder() / NAME).is_file():
                return folder() / NAME
    return None


def _has_flag(option: click.Parameter) -> bool:
    return isinstance(option, click.Option) and option.name not in ("config", "help")


def _shape(option: click.Option) -> str:
    if option.is_flag:
        return FLAG
    if option.multiple:
        return LIST
    return FILE if isinstance(option.type, click.Path) else TEXT


def _source(ctx: click.Context, name: str) -> Any:
    return ctx.get_parameter_source(name)


def _check_found(config: Config, is_in_data_dir: bool) -> None:
    """What nobody has named is taken only from whoever may say such things."""
    if stat.S_IMODE(config.file.stat().st_mode) & stat.S_IWOTH:
        raise click.UsageError(
            f"{config.file} can be written by every user of this machine, so it is not taken unasked: chmod o-w it, or name it with --config."
        )
    if is_in_data_dir and "data-dir" in config.options:
        raise click.UsageError(
            f"{config.file}: data-dir: a file in the data directory cannot name another one."
        )
