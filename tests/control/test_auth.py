"""Secrets, ids and what roles allow."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import pytest
from haltwire.wire.selectors import Selector
from haltwire_control import auth
from haltwire_control.auth import caller_of, digest_of, is_secret, may, new_id, new_secret
from haltwire_control.state import Key, State, Token

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)


def test_a_secret_is_32_random_bytes_behind_its_prefix():
    one, other = new_secret("hwa_"), new_secret("hwa_")
    assert re.fullmatch(r"hwa_[A-Za-z0-9_-]{43}", one)
    assert one != other
    assert is_secret(one)


def test_an_id_never_looks_like_a_name():
    """Agents' names are lower case, so `resume K…` can mean only a kill."""
    assert re.fullmatch(r"K[0-9A-HJKMNP-TV-Z]{12}", new_id("K"))


ALLOWED = {
    "viewer": {auth.READ},
    "operator": {auth.READ, auth.HEARTBEAT, auth.KILL},
    "admin": {auth.READ, auth.HEARTBEAT, auth.KILL, auth.ADMINISTER},
    "proxy": {auth.CONNECT},
    "agent": {auth.HEARTBEAT},
    "nobody": set(),
}
ACTIONS = {auth.READ, auth.HEARTBEAT, auth.KILL, auth.ADMINISTER, auth.CONNECT}


@pytest.mark.parametrize("role", ALLOWED)
def test_roles_allow_exactly_this(role):
    assert {action for action in ACTIONS if may(role, action)} == ALLOWED[role]


@pytest.fixture
def secrets():
    return {
        name: new_secret("hwk_" if name != "agent" else "hwa_")
        for name in ("ada", "agent", "local")
    }


@pytest.fixture
def state(secrets):
    key = Key("Y1", digest_of(secrets["ada"]), "ada", "operator", NOW, "key:admin")
    selector = Selector.parse("agent://acme/prod/mailer")
    token = Token("T1", digest_of(secrets["agent"]), selector, None, NOW, "key:admin")
    return State("e", keys={key.digest: key}, tokens={token.digest: token})


def test_a_secret_says_who_calls(secrets, state):
    local = digest_of(secrets["local"])
    ada = caller_of(secrets["ada"], state, local)
    assert (ada.role, ada.actor.name, ada.actor.actor_id) == ("operator", "key:ada", "Y1")
    agent = caller_of(secrets["agent"], state, local)
    assert (agent.role, agent.actor.name) == ("agent", "agent:agent://acme/prod/mailer")
    assert caller_of(secrets["local"], state, local).role == "proxy"


WRONG = ["", "hwk_", "hwk_" + "x" * 43, "hwk_" + "x" * 42, "hwx_" + "x" * 43, "hwk_" + "é" * 43]


@pytest.mark.parametrize("secret", WRONG)
def test_nobody_has_other_secrets(secret, state):
    assert caller_of(secret, state, "") is None


def test_without_a_local_key_the_empty_secret_is_nobody(state):
    assert caller_of("", state, digest_of("")) is None


KEY = "hwk_" + "k" * 43
HOLDERS = {
    "a key alone": (KEY, True, "***"),
    "in a sentence": (f"the key is {KEY}.", True, "the key is ***."),
    "a token in a URL": (f"http://a.b:{KEY.replace('k_', 'a_')}@h", True, "http://a.b:***@h"),
    "a part of one": (KEY[:-1], False, KEY[:-1]),
    "its prefix": ("hwk_", False, "hwk_"),
    "an id": ("K0123456789AB", False, "K0123456789AB"),
}


@pytest.mark.parametrize(("text", "holds", "shown"), HOLDERS.values(), ids=HOLDERS)
def test_a_secret_is_seen_wherever_it_is(text, holds, shown):
    assert auth.holds_secret(text) is holds
    assert auth.holds_secret(text.encode()) is holds
    assert auth.without_secrets(text) == shown
