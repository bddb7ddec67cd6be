"""The messages on the link: each has a JSON sample that every implementation reads."""

import json
import typing
from datetime import datetime, timezone
from pathlib import Path

import pytest
from haltwire.wire import messages
from haltwire.wire.messages import Bye, Delta, Message, Renewed, Report, dumps, loads
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import MODES, Kill
from haltwire.wire.selectors import Selector
from hypothesis import given
from hypothesis import strategies as st

SAMPLES = Path(__file__).parent.parent / "wire"
NAMES = sorted(cls.__name__.lower() for cls in typing.get_args(Message))


def sample(name):
    return (SAMPLES / f"{name}.json").read_text(encoding="utf-8")


def test_every_message_has_a_sample_and_every_sample_a_message():
    assert sorted(messages._CLASSES) == NAMES
    assert set(NAMES) <= {path.stem for path in SAMPLES.glob("*.json")}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_read_and_written_the_same(name):
    message = loads(sample(name))
    assert type(message).__name__.lower() == name
    assert json.loads(dumps(message)) == json.loads(sample(name))
    assert loads(dumps(message)) == message


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_shows_every_field(name):
    """So that whoever writes another implementation from the samples misses none."""
    cls = messages._CLASSES[name]
    assert set(json.loads(sample(name))) == {"type", *cls.__slots__}


@pytest.mark.parametrize("name", NAMES)
def test_one_message_is_one_line(name):
    assert "\n" not in dumps(loads(sample(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_newer_peer_may_say_more(name):
    document = {**json.loads(sample(name)), "from_next_year": {"x": [1]}}
    assert loads(json.dumps(document)) == loads(sample(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [{}, None, "\0", float("nan"), [[]]])
def test_a_field_of_the_wrong_kind_is_a_value_error(name, wrong):
    document = json.loads(sample(name))
    for key in document:
        text = json.dumps({**document, key: wrong})
        try:
            assert type(loads(text)).__name__.lower() == name
        except ValueError:
            continue


def test_a_sample_says_what_it_means():
    report = loads(sample("report"))
    assert isinstance(report, Report)
    first, second = report.instances
    assert first.agent == AgentRef.parse("agent://acme/prod/mailer")
    assert first.in_flight[0].sent == "partly"
    assert first.in_flight[0].started_at == datetime(2026, 11, 22, 9, 30, 0, 125000, timezone.utc)
    assert second.in_flight[0].path is None
    assert not second.completed_known
    assert (second.connections_live, second.connections_held, second.lost_while_held) == (2, 1, 3)
    assert (report.live, report.residual_bytes_max) == (2, 65536)


def test_the_samples_show_every_mode_with_what_belongs_to_it():
    snapshot, delta = loads(sample("snapshot")), loads(sample("delta"))
    by_mode = {order.mode: order for order in (*snapshot.orders, *delta.kills)}
    assert set(by_mode) == set(MODES)
    assert (by_mode["drain"].grace_s, by_mode["drain"].hold_until) == (30.0, None)
    assert by_mode["hold"].grace_s is None
    assert by_mode["hold"].hold_until == datetime(2026, 11, 22, 10, 30, tzinfo=timezone.utc)


OLDER = {
    "kill": ("delta", "kills", ("grace_s", "hold_until")),
    "instance": (
        "report",
        "instances",
        ("connections_live", "connections_held", "lost_while_held"),
    ),
}


@pytest.mark.parametrize(("name", "items", "fields"), OLDER.values(), ids=OLDER)
def test_what_an_older_peer_leaves_out_is_nothing(name, items, fields):
    document = json.loads(sample(name))
    for field in fields:
        for item in document[items]:
            del item[field]
    document.pop("live", None)
    document.pop("residual_bytes_max", None)
    for item in getattr(loads(json.dumps(document)), items):
        assert not any(getattr(item, field) for field in fields)


def test_what_a_delta_does_not_say_is_nothing():
    assert loads('{"type": "delta", "previous": 1, "revision": 2}') == Delta(1, 2)


NO_MESSAGES = {
    "nothing": "",
    "no JSON": "{",
    "no object": "[]",
    "no type": "{}",
    "an unknown type": '{"type": "hold"}',
    "a class that is no message": '{"type": "settings", "lease_ms": 1}',
    "a type of another kind": '{"type": ["bye"]}',
    "null for a type": '{"type": null}',
    "a field missing": '{"type": "bye"}',
    "another spelling": '{"type": "Bye", "proxy_id": "w-1"}',
    "nested too deep": "[" * 200_000,
}


@pytest.mark.parametrize("name", NO_MESSAGES)
def test_no_message(name):
    with pytest.raises(ValueError):
        loads(NO_MESSAGES[name])


@given(st.text(max_size=40))
def test_any_text_is_a_message_or_a_value_error(text):
    with pytest.raises(ValueError):
        loads(text)


@given(st.text(), st.none() | st.text(), st.integers(0, 2**53))
def test_any_words_travel_unharmed(proxy_id, reason, revision):
    kill = Kill(
        "K1",
        Selector.parse("agent://**"),
        "cut",
        reason,
        "key:ada",
        datetime(2026, 11, 22, tzinfo=timezone.utc),
        revision,
    )
    for message in (Bye(proxy_id), Delta(0, revision, (kill,)), Renewed(0.1, proxy_id, 1, 2)):
        assert loads(dumps(message)) == message
