"""Frozen dataclasses to and from JSON values, driven by their annotations.

Decoding is strict about types and lenient about keys it does not know: a newer peer may say more.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def format_time(moment: datetime) -> str:
    """An aware time as RFC 3339 in UTC with microseconds, such as 2026-11-22T09:30:00.125000Z."""
    utc = moment.astimezone(timezone.utc)
    return utc.isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """Read RFC 3339; ValueError without an offset."""
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError as error:
        raise ValueError(f"{text!r} is beyond the years 1 to 9999 in UTC") from error


def encode(value: Any) -> Any:
    """The JSON value of a dataclass, a name, a time, or a container of them."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [encode(item) for item in value]
    if hasattr(value, "parse"):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no wire form")


def decode(cls: type[T], value: Any, path: str = "") -> T:
    """Build `cls` from a JSON value; ValueError names the field that does not fit."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{path or cls.__name__}: an object is needed")
    arguments = {}
    for name, annotation, required in _fields(cls):  # type: ignore[arg-type]
        where = f"{path}.{name}" if path else name
        if name in value:
            arguments[name] = _decode(annotation, value[name], where)
        elif required:
            raise ValueError(f"{where}: missing")
    return cls(**arguments)


@cache
def _fields(cls: type[Any]) -> tuple[tuple[str, Any, bool], ...]:
    hints = typing.get_type_hints(cls)
    nothing = dataclasses.MISSING
    return tuple(
        (f.name, hints[f.name], f.default is nothing and f.default_factory is nothing)
        for f in dataclasses.fields(cls)
        if f.init
    )


def _decode(annotation: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        return None if value is None else _decode(inner[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: a list is needed")
        item = typing.get_args(annotation)[0]
        return tuple(_decode(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) or annotation is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: an object is needed")
        return value
    if origin is typing.Literal:
        if value not in typing.get_args(annotation):
            raise ValueError(f"{where}: {value!r} is none of {typing.get_args(annotation)}")
        return value
    return _decode_plain(annotation, value, where)


def _decode_plain(annotation: Any, value: Any, where: str) -> Any:
    if annotation is Any:
        return value
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{where}: a number too large") from error
    if annotation in (str, int, float, bool):
        if not isinstance(value, annotation) or (
            annotation is not bool and isinstance(value, bool)
        ):
            raise ValueError(f"{where}: {annotation.__name__} is needed")
        return value
    if annotation is datetime or hasattr(annotation, "parse"):
        if not isinstance(value, str):
            raise ValueError(f"{where}: text is needed")
        read = parse_time if annotation is datetime else annotation.parse
        try:
            return read(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return decode(annotation, value, where)
