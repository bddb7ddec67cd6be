"""What a machine was set up with: there from the first start, once, and once revoked never again."""

from __future__ import annotations

import logging

import pytest
from haltwire.wire.selectors import Selector
from haltwire_control.auth import digest_of
from haltwire_control.configured import ConfigurationError, with_admin, with_token
from haltwire_control.state import Key, State, Token
from support.control import running_control
from support.stores import NOW, failing

SECRET, OTHER = "hwa_" + "s" * 43, "hwa_" + "o" * 43
ADMIN, SECOND = "hwk_" + "a" * 43, "hwk_" + "b" * 43
MAILER = ("agent://acme/prod/mailer", None, digest_of(SECRET))


def settled(tmp_path, *tokens, admin: str = ""):
    return running_control(tmp_path, tokens=tokens, admin_key=admin)


def token(selector: str, secret: str = SECRET, tls: str | None = None) -> Token:
    return Token("T1", digest_of(secret), Selector.parse(selector), tls, NOW, "system:config")


def key(secret: str, name: str = "admin-file", role: str = "admin") -> Key:
    return Key(f"Y{secret[-1]}", digest_of(secret), name, role, NOW, "system:config")


async def test_a_configured_token_works_and_is_made_once(tmp_path):
    for _ in range(2):
        async with settled(tmp_path, MAILER) as control:
            assert (await control.beat(SECRET)).body["agent_uri"] == "agent://acme/prod/mailer"
            created = [t for t in await control.event_types() if t == "token.created"]
            assert len(created) == 1
    async with settled(tmp_path) as control:
        assert (await control.beat(SECRET)).status == 200, "taking it out of a file revokes nothing"


async def test_a_revoked_token_stays_revoked(tmp_path, caplog):
    """Without the question to the store, the second start brought the token back to life."""
    async with settled(tmp_path, MAILER) as control:
        (made,) = (await control.call("GET", "/v1/tokens")).body["tokens"]
        assert made["created_by"] == "system:config"
        await control.call("DELETE", f"/v1/tokens/{made['token_id']}")
    with caplog.at_level(logging.WARNING):
        async with settled(tmp_path, MAILER) as control:
            assert (await control.beat(SECRET)).status == 401
            assert (await control.call("GET", "/v1/tokens")).body["tokens"] == []
    assert (
        "the configured token of agent://acme/prod/mailer was revoked and stays so" in caplog.text
    )


async def test_another_agent_does_not_get_the_same_secret(tmp_path):
    async with settled(tmp_path, MAILER):
        pass
    with pytest.raises(
        OSError, match=r"a secret that is the token T.* of agent://acme/prod/mailer"
    ):
        async with settled(tmp_path, ("agent://acme/prod/biller", None, digest_of(SECRET))):
            pass
    async with settled(tmp_path, MAILER) as control:
        assert (await control.beat(SECRET)).status == 200


async def test_the_configured_admin_is_one_and_no_other_is_made(tmp_path):
    for _ in range(2):
        async with settled(tmp_path, admin=ADMIN) as control:
            assert control.admin_key == ADMIN, "commands on this machine find it as ever"
            keys = (await control.call("GET", "/v1/keys")).body["keys"]
            assert [(k["name"], k["role"], k["created_by"]) for k in keys] == [
                ("admin-file", "admin", "system:config")
            ]


async def test_another_configured_admin_takes_the_place_of_the_one_before(tmp_path):
    async with settled(tmp_path, admin=ADMIN):
        pass
    async with settled(tmp_path, admin=SECOND) as control:
        assert control.admin_key == SECOND
        assert (await control.call("GET", "/v1/keys", key=ADMIN)).status == 401
        assert [k["name"] for k in (await control.call("GET", "/v1/keys")).body["keys"]] == [
            "admin-file"
        ]
        types = await control.event_types()
        assert types[-2:] == ["key.revoked", "key.created"]
    async with settled(tmp_path, admin=ADMIN) as control:
        assert (await control.call("GET", "/v1/keys", key=ADMIN)).status == 401, "revoked for good"
        assert (await control.call("GET", "/v1/keys")).status == 200


async def test_a_directory_that_made_its_own_admin_keeps_it(tmp_path):
    async with settled(tmp_path) as control:
        own = control.admin_key
    async with settled(tmp_path, admin=ADMIN) as control:
        assert control.admin_key == own
        for secret in (own, ADMIN):
            assert (await control.call("GET", "/v1/keys", key=secret)).status == 200


async def test_a_disk_that_takes_nothing_does_not_keep_the_server_from_starting(
    tmp_path, monkeypatch, caplog
):
    from haltwire_control import sqlite

    async with settled(tmp_path):
        pass
    original = sqlite.SqliteStore.__init__

    def broken(self, path):
        original(self, path)
        broken.disk = failing(self)  # kept: at its end the disk is well again
        broken.disk.__enter__()

    monkeypatch.setattr(sqlite.SqliteStore, "__init__", broken)
    async with settled(tmp_path, MAILER) as control:
        assert (await control.call("GET", "/healthz", key=None)).status == 200
        assert (await control.beat(SECRET)).status == 401
    assert "what is configured could not be stored" in caplog.text


def test_with_token_changes_nothing_when_it_is_there():
    state = with_token(State("e"), token("agent://a/b")).state
    again = with_token(state, token("agent://a/b"))
    assert (again.state, again.put, again.events, again.delta) == (state, (), (), None)


@pytest.mark.parametrize("other", [token("agent://a/c"), token("agent://a/b", tls="tunnel")])
def test_with_token_refuses_another_meaning_of_the_same_secret(other):
    state = with_token(State("e"), token("agent://a/b")).state
    with pytest.raises(ConfigurationError, match="give it a new one"):
        with_token(state, other)


def test_with_admin_refuses_a_secret_of_less():
    standing = key(ADMIN, "ada", "viewer")
    state = State("e", keys={standing.digest: standing})
    with pytest.raises(ConfigurationError, match="'ada', whose role is viewer"):
        with_admin(state, key(ADMIN), NOW)
