"""JSON values in and out: exact about types, easy about keys that a newer peer adds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

import pytest
from haltwire.wire.codec import decode, encode, format_time, parse_time
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import Selector
from hypothesis import given
from hypothesis import strategies as st

MOMENTS = st.datetimes(
    min_value=datetime(1, 1, 3),  # noqa: DTZ001 (hypothesis adds the zone)
    max_value=datetime(9999, 12, 29),  # noqa: DTZ001
    timezones=st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
)


@dataclass(frozen=True, slots=True)
class Inner:
    agent: AgentRef
    selectors: tuple[Selector, ...] = ()


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    count: int
    ratio: float
    flag: bool
    moment: datetime
    inner: Inner
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    note: str | None = None
    mapping: Mapping[str, float] = field(default_factory=dict)
    anything: Any = None
    kind: Literal["a", "b"] = "a"


MAILER = AgentRef(("acme", "mailer"))
INNERS = st.builds(Inner, st.just(MAILER), st.just((Selector.parse("agent://acme/*~i*"),)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
OUTERS = st.builds(
    Outer,
    st.text(),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    MOMENTS,
    INNERS,
    st.lists(INNERS, max_size=2).map(tuple),
    st.none() | INNERS,
    st.none() | st.text(),
    st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=2),
    JSON,
    st.sampled_from(["a", "b"]),
)


@given(OUTERS)
def test_what_is_encoded_is_decoded(value):
    assert decode(Outer, json.loads(json.dumps(encode(value)))) == value


@given(MOMENTS)
def test_a_time_is_read_as_it_is_written(moment):
    text = format_time(moment)
    assert text.endswith("Z")
    assert len(text) == len("2026-11-22T09:30:00.125000Z")
    assert parse_time(text) == moment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T09:30:00Z", "2026-11-22T09:30:00.000000Z"),
        ("2026-11-22T10:30:00.125+01:00", "2026-11-22T09:30:00.125000Z"),
        ("2026-11-22T09:30:00-00:30", "2026-11-22T10:00:00.000000Z"),
    ],
)
def test_a_time_with_an_offset(text, expected):
    assert format_time(parse_time(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "yesterday",
        "2026-11-22T09:30:00",
        "2026-13-22T09:30:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_no_time(text):
    with pytest.raises(ValueError):
        parse_time(text)


def plain(**changes):
    """A JSON value that decodes, but for the changes."""
    return {
        "name": "n",
        "count": 1,
        "ratio": 0.5,
        "flag": True,
        "moment": "2026-11-22T09:30:00Z",
        "inner": {"agent": "agent://acme/mailer"},
        **changes,
    }


def test_what_is_missing_has_its_default():
    value = decode(Outer, plain())
    assert value.many == ()
    assert value.maybe is None
    assert value.mapping == {}


def test_keys_that_we_do_not_know_are_left_alone():
    assert decode(Outer, plain(newer=1, inner={"agent": "agent://a/b", "newer": []})) == decode(
        Outer, plain(inner={"agent": "agent://a/b"})
    )


def test_a_whole_number_is_a_float_too():
    value = decode(Outer, plain(ratio=2))
    assert isinstance(value.ratio, float)


WRONG = {
    "text for a number": ({"count": "1"}, "count: int"),
    "a fraction for a whole number": ({"count": 1.0}, "count: int"),
    "true for a number": ({"count": True}, "count: int"),
    "true for a fraction": ({"ratio": True}, "ratio: float"),
    "a number beyond floats": ({"ratio": 10**400}, "ratio: a number too large"),
    "a number for true": ({"flag": 1}, "flag: bool"),
    "a number for text": ({"name": 1}, "name: str"),
    "null where something is needed": ({"name": None}, "name: str"),
    "a list for an object": ({"inner": []}, "inner: an object"),
    "an object for a list": ({"many": {}}, "many: a list"),
    "text for a list": ({"many": "ab"}, "many: a list"),
    "a list for a mapping": ({"mapping": []}, "mapping: an object"),
    "a number for a time": ({"moment": 1}, "moment: text"),
    "a time without zone": ({"moment": "2026-11-22T09:30:00"}, "moment: .* no time zone"),
    "no agent": ({"inner": {"agent": "mailer"}}, "inner.agent: an agent is written"),
    "a number for an agent": ({"inner": {"agent": 5}}, "inner.agent: text"),
    "something missing inside": ({"many": [{}]}, r"many\[0\].agent: missing"),
    "something wrong inside": (
        {"many": [{"agent": "agent://a/b", "selectors": ["agent://a/b", "x"]}]},
        r"many\[0\].selectors\[1\]: a selector is written",
    ),
    "none of the choices": ({"kind": "c"}, "kind: 'c' is none of"),
    "a choice that cannot be one": ({"kind": []}, "kind: .* is none of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name):
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        decode(Outer, plain(**changes))


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_only_an_object_is_one(value):
    with pytest.raises(ValueError, match="Outer: an object is needed"):
        decode(Outer, value)


@given(st.dictionaries(st.sampled_from(list(plain())), JSON))
def test_any_json_is_decoded_or_a_value_error(changes):
    try:
        value = decode(Outer, plain(**changes))
    except ValueError:
        return
    assert decode(Outer, encode(value)) == value


def test_what_has_no_wire_form_is_refused():
    with pytest.raises(TypeError, match="object has no wire form"):
        encode(object())


def test_containers_and_names():
    assert encode({"a": (MAILER, {Selector.parse("agent://**")})}) == {
        "a": ["agent://acme/mailer", ["agent://**"]]
    }
