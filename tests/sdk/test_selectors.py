"""Selectors match exactly what their words say, and claim to cover only what they cover."""

import time

import pytest
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import (
    EVERYTHING,
    Selector,
    UnknownNameError,
    needs_known,
    parse_typed,
)
from hypothesis import example, given
from hypothesis import strategies as st

# Two letters and short words: so that globs, agents and other globs meet often.
AGENTS = st.builds(
    AgentRef,
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=2, max_size=4).map(tuple),
)
INSTANCES = st.text("ab", min_size=1, max_size=4)
GLOBS = st.text("ab*", min_size=1, max_size=4).filter(lambda glob: "**" not in glob)


@st.composite
def selectors(draw):
    path = draw(st.lists(GLOBS, min_size=0, max_size=4))
    if len(path) < 2 or draw(st.booleans()):
        path.append("**")
    return Selector(tuple(path), draw(st.none() | GLOBS))


def glob_matches(glob, text):
    """What a glob means, character by character."""
    if not glob:
        return not text
    if glob[0] == "*":
        return glob_matches(glob[1:], text) or (bool(text) and glob_matches(glob, text[1:]))
    return bool(text) and text[0] == glob[0] and glob_matches(glob[1:], text[1:])


def path_matches(path, segments):
    """What a path of globs means, segment by segment."""
    if path == ("**",):
        return bool(segments)
    if not path or not segments:
        return not path and not segments
    return glob_matches(path[0], segments[0]) and path_matches(path[1:], segments[1:])


@given(selectors(), AGENTS, INSTANCES)
def test_it_matches_exactly_what_its_words_say(selector, agent, instance):
    by_path = path_matches(selector.segments, agent.segments)
    by_instance = selector.instance is None or glob_matches(selector.instance, instance)
    assert selector.matches_agent(agent) is by_path
    assert selector.matches_instance(instance) is by_instance
    assert selector.matches(agent, instance) is (by_path and by_instance)


@given(selectors())
def test_it_is_read_as_it_is_written(selector):
    assert Selector.parse(str(selector)) == selector
    assert parse_typed(str(selector)) == selector


@given(selectors(), selectors(), AGENTS, INSTANCES)
@example(EVERYTHING, Selector(("a", "**"), "a*"), AgentRef(("a", "b")), "ab")
def test_covers_is_never_true_wrongly(wide, narrow, agent, instance):
    if wide.covers(narrow) and narrow.matches(agent, instance):
        assert wide.matches(agent, instance)


@given(selectors())
def test_everything_covers_all_and_each_covers_itself(selector):
    assert EVERYTHING.covers(selector)
    assert selector.covers(selector)


@given(selectors(), AGENTS, INSTANCES)
def test_covering_one_instance_is_matching_it(selector, agent, instance):
    assert selector.covers(Selector.of(agent, instance)) is selector.matches(agent, instance)


COVERS = {
    ("agent://acme/**", "agent://acme/prod/*"): True,
    ("agent://acme/**", "agent://acme/**"): True,
    ("agent://acme/*", "agent://acme/**"): False,
    ("agent://acme/**", "agent://**"): False,
    ("agent://acme/prod/**", "agent://acme/prod/mailer"): True,
    ("agent://acme/prod/**", "agent://acme/prod"): False,
    ("agent://acme/prod/**", "agent://acme/**"): False,
    ("agent://acme/m*", "agent://acme/ma*"): True,
    ("agent://acme/ma*", "agent://acme/m*"): False,
    ("agent://acme/*r", "agent://acme/m*r"): True,
    ("agent://acme/mailer", "agent://acme/mailer~i-1"): True,
    ("agent://acme/mailer~i-1", "agent://acme/mailer"): False,
    ("agent://acme/mailer~i-*", "agent://acme/mailer~i-1"): True,
    ("agent://acme/mailer~*", "agent://acme/mailer"): True,
}


@pytest.mark.parametrize(("wide", "narrow"), COVERS)
def test_covers(wide, narrow):
    assert Selector.parse(wide).covers(Selector.parse(narrow)) is COVERS[wide, narrow]


@given(AGENTS, st.none() | INSTANCES)
def test_the_selector_of_one_agent(agent, instance):
    selector = Selector.of(agent, instance)
    assert selector.agent == agent
    assert selector.bound_instance == instance
    assert selector.matches(agent, instance or "any")


@pytest.mark.parametrize(
    ("text", "agent", "bound"),
    [
        ("agent://acme/mailer", "agent://acme/mailer", None),
        ("agent://acme/mailer~i-1", "agent://acme/mailer", "i-1"),
        ("agent://acme/mailer~i-*", "agent://acme/mailer", None),
        ("agent://acme/mailer~*", "agent://acme/mailer", None),
        ("agent://acme/mailer~ip:192.0.2.7", "agent://acme/mailer", "ip:192.0.2.7"),
        ("agent://acme/*", None, None),
        ("agent://**", None, None),
    ],
)
def test_whom_it_names(text, agent, bound):
    selector = Selector.parse(text)
    assert (None if selector.agent is None else str(selector.agent)) == agent
    assert selector.bound_instance == bound


def test_every_instance_is_the_same_as_no_instance():
    assert Selector.parse("agent://acme/mailer~*") == Selector.parse("agent://acme/mailer")
    assert EVERYTHING.matches(AgentRef(("a", "b")), "ip:192.0.2.7")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "agent://",
        "agent://*",
        "agent://acme",
        "agent:///",
        "agent://acme/",
        "agent://**/mailer",
        "agent://acme/a**",
        "agent://acme/***",
        "agent://acme/[ab]",
        "agent://acme/a?",
        "agent://acme/{a,b}",
        "agent://acme/-a",
        "agent://acme/A*",
        "agent://acme/mailer~",
        "agent://acme/mailer~**",
        "agent://acme/mailer~a~b",
        "agent://acme/mailer~a b",
        "agent://acme/mailer\n",
        "agent://acme/mailer~i\n",
        "agent://a/b/c/d/e/f/g/h/i",
        "acme/mailer",
        "**",
    ],
)
def test_no_selector(text):
    with pytest.raises(ValueError):
        Selector.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_selector_or_a_value_error(text):
    for read in (Selector.parse, parse_typed):
        try:
            selector = read(text)
        except ValueError:
            continue
        assert Selector.parse(str(selector)) == selector


def test_many_stars_do_not_hang():
    """A viewer asks for such a selector, and every kill behind it would wait."""
    begun = time.monotonic()
    selector = Selector(("a", "*a" * 31), "*b" * 63)
    assert not selector.matches(AgentRef(("a", "a" * 62 + "b")), "b" * 127 + "c")
    assert not selector.covers(Selector(("a", "a" * 62 + "b"), "b" * 127 + "c"))
    assert selector.matches(AgentRef(("a", "a" * 63)), "b" * 128)
    assert time.monotonic() - begun < 1


KNOWN = [
    AgentRef(("acme", "prod", "mailer")),
    AgentRef(("acme", "prod", "billing")),
    AgentRef(("acme", "dev", "billing")),
    AgentRef(("mailer", "x")),
]
TYPED = {
    "agent://acme/prod/mailer": "agent://acme/prod/mailer",
    "acme/prod/mailer": "agent://acme/prod/mailer",
    "acme.prod.mailer": "agent://acme/prod/mailer",
    "acme.prod.mailer~i-1.local": "agent://acme/prod/mailer~i-1.local",
    "acme.prod.*": "agent://acme/prod/*",
    "acme.**": "agent://acme/**",
    "**": "agent://**",
    "agent://**": "agent://**",
    "mailer": "agent://acme/prod/mailer",
    "mailer~i-*": "agent://acme/prod/mailer~i-*",
    "agent://mailer": "agent://acme/prod/mailer",
    "acme.prod.unknown": "agent://acme/prod/unknown",
}


@pytest.mark.parametrize("text", TYPED)
def test_typed(text):
    assert str(parse_typed(text, KNOWN)) == TYPED[text]
    assert needs_known(text) is (text.partition("~")[0] in ("mailer", "agent://mailer"))


def test_a_bare_name_of_several_agents_lists_them():
    with pytest.raises(UnknownNameError, match="type one of them in full") as caught:
        parse_typed("billing", KNOWN)
    assert list(map(str, caught.value.candidates)) == [
        "agent://acme/dev/billing",
        "agent://acme/prod/billing",
    ]


def test_a_bare_name_of_nobody_says_so():
    with pytest.raises(UnknownNameError, match="no agent ends in 'nobody'") as caught:
        parse_typed("nobody", KNOWN)
    assert caught.value.candidates == ()


@pytest.mark.parametrize("text", ["", "*", "m*", "Mailer", "a b", "~i", "mailer~", "acme..x"])
def test_no_typed_selector(text):
    with pytest.raises(ValueError) as caught:
        parse_typed(text, KNOWN)
    assert not isinstance(caught.value, UnknownNameError)
