"""Names of agents and instances in every spelling that clients send."""

from contextlib import suppress
from urllib.parse import quote

import pytest
from haltwire.wire.names import (
    AgentRef,
    Label,
    check_instance,
    check_seen_instance,
    peer_instance,
    source_of,
    split_userinfo,
)
from hypothesis import given
from hypothesis import strategies as st

SEGMENTS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
AGENTS = st.builds(AgentRef, st.lists(SEGMENTS, min_size=2, max_size=8).map(tuple))
INSTANCES = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)
LABELS = st.builds(Label, AGENTS, st.none() | INSTANCES)
MAILER = AgentRef(("acme", "prod", "mailer"))


@given(AGENTS)
def test_an_agent_is_read_as_it_is_written(agent):
    assert AgentRef.parse(str(agent)) == agent
    assert AgentRef.parse_label(agent.label) == agent
    assert AgentRef.parse_label(str(agent)) == agent
    assert str(agent).endswith(agent.name)


@given(LABELS)
def test_a_label_is_read_as_it_is_written(label):
    assert Label.parse(str(label)) == label


@given(LABELS, st.sampled_from(["dots", "slashes", "whole"]), st.booleans())
def test_a_label_in_any_spelling(label, form, encoded):
    agent = {
        "dots": label.agent.label,
        "slashes": "/".join(label.agent.segments),
        "whole": str(label.agent),
    }[form]
    text = agent if label.instance is None else f"{agent}~{label.instance}"
    assert Label.parse(quote(text, safe="") if encoded else text) == label


@given(LABELS, st.from_regex(r"hwa_[A-Za-z0-9_-]{43}", fullmatch=True))
def test_userinfo_is_split_where_it_was_joined(label, secret):
    for text in (str(label), str(label.agent)):
        if len(text) + len(secret) < 512:
            assert split_userinfo(f"{text}:{secret}") == (text, secret)


@given(st.text(max_size=30))
def test_any_text_is_a_name_or_a_value_error(text):
    for read in (AgentRef.parse, AgentRef.parse_label, Label.parse, check_seen_instance):
        try:
            read(text)
        except ValueError:
            continue
    with suppress(ValueError):
        assert Label.parse(str(Label.parse(text))) == Label.parse(text)


NO_AGENTS = {
    "empty": "",
    "no scheme": "acme/prod/mailer",
    "scheme alone": "agent://",
    "one segment": "agent://acme",
    "nine segments": "agent://a/b/c/d/e/f/g/h/i",
    "empty segment": "agent://acme//mailer",
    "slash at the end": "agent://acme/mailer/",
    "upper case": "agent://acme/Mailer",
    "upper-case scheme": "AGENT://acme/mailer",
    "begins with a dash": "agent://acme/-mailer",
    "begins with an underscore": "agent://acme/_mailer",
    "a dot": "agent://acme/mail.er",
    "a star": "agent://acme/*",
    "an instance": "agent://acme/mailer~i",
    "64 characters": "agent://acme/" + "a" * 64,
    "a newline behind": "agent://acme/mailer\n",
    "NUL": "agent://acme/mailer\0",
    "another alphabet": "agent://acme/mаiler",  # noqa: RUF001 (that is the point)
    "digits of another alphabet": "agent://acme/m\u0661",
    "a query": "agent://acme/mailer?x",
}


@pytest.mark.parametrize("name", NO_AGENTS)
def test_no_agent(name):
    with pytest.raises(ValueError):
        AgentRef.parse(NO_AGENTS[name])


def test_what_is_no_agent_is_quoted():
    with pytest.raises(ValueError, match="'Mailer' in 'agent://acme/Mailer'"):
        AgentRef.parse("agent://acme/Mailer")


LABELS_READ = {
    "acme.prod.mailer": (MAILER, None),
    "acme.prod.mailer~i-7f3a": (MAILER, "i-7f3a"),
    "acme.prod.mailer~host.local_1": (MAILER, "host.local_1"),
    "acme/prod/mailer": (MAILER, None),
    "agent://acme/prod/mailer~I": (MAILER, "I"),
    "agent://acme.prod.mailer": (MAILER, None),
    "agent%3A%2F%2Facme%2Fprod%2Fmailer": (MAILER, None),
    "agent%3a%2f%2facme%2fprod%2fmailer%7ei": (MAILER, "i"),
    "acme%2Eprod%2Emailer": (MAILER, None),
}


@pytest.mark.parametrize("text", LABELS_READ)
def test_label(text):
    assert Label.parse(text) == Label(*LABELS_READ[text])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "~",
        "~i",
        "mailer",
        "acme.prod.mailer~",
        "acme.prod.mailer~i~j",
        "acme.prod.mailer~ip:1.2.3.4",
        "acme.prod.mailer~*",
        "acme..mailer",
        "acme.prod/mailer",
        "acme%252Emailer",
        "acme.mailer%00",
        "acme.mailer%0A",
        "acme.m%C3%A4iler",
        "acme.mailer%FF",
        "acme.mailer%",
        "acme.mailer ",
    ],
)
def test_no_label(text):
    with pytest.raises(ValueError):
        Label.parse(text)


@pytest.mark.parametrize("text", ["i", "i-7f3a", "Host.local_9", "-", "x" * 128])
def test_instance(text):
    assert check_instance(text) == text
    assert check_seen_instance(text) == text


@pytest.mark.parametrize(
    "text", ["", "a b", "a/b", "a~b", "a:b", "a*", "ä", "i\n", "x" * 129, "ip:"]
)
def test_no_instance(text):
    with pytest.raises(ValueError):
        check_instance(text)
    with pytest.raises(ValueError):
        check_seen_instance(text)


@given(st.ip_addresses())
def test_an_unnamed_instance_is_its_peer_address(address):
    """Nobody can name itself so, which would let it pass for another place."""
    name = peer_instance(str(address))
    assert name == f"ip:{address}"
    assert check_seen_instance(name) == name
    with pytest.raises(ValueError):
        check_instance(name)


def test_the_interface_of_a_link_local_peer_is_left_out():
    assert peer_instance("fe80::1%eth0") == "ip:fe80::1"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("acme.mailer:hwa_x", ("acme.mailer", "hwa_x")),
        ("agent://acme/mailer:hwa_x", ("agent://acme/mailer", "hwa_x")),
        (":hwa_x", ("", "hwa_x")),
        ("a" * 508 + ":hwa", ("a" * 508, "hwa")),
    ],
)
def test_userinfo(text, parts):
    assert split_userinfo(text) == parts


@pytest.mark.parametrize("text", ["", "hwa_x", "a:", ":", "ä:x", "a" * 509 + ":hwa"])
def test_no_userinfo(text):
    with pytest.raises(ValueError):
        split_userinfo(text)


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        ("others", "others"),
    ],
)
def test_failures_are_counted_by_address_or_network(host, source):
    assert source_of(host) == source
