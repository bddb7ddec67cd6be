"""Tokens and keys over HTTP: shown once, known to proxies before they are used, revoked at once."""

from __future__ import annotations

import asyncio
import re

import pytest
from haltwire.wire.selectors import Selector
from haltwire_control.auth import digest_of
from haltwire_control.credentials import called_by, proxy_url_of
from support.control import Worker, running_control
from support.stores import opened


async def test_a_token_is_shown_once_and_known_to_the_worker(control, worker):
    body = {"selector": "acme.prod.mailer~i-1", "tls": "intercept"}
    made = (await control.call("POST", "/v1/tokens", body)).body
    secret = made["secret"]
    assert re.fullmatch(r"hwa_[A-Za-z0-9_-]{43}", secret)
    assert made["selector"] == "agent://acme/prod/mailer~i-1"
    assert made["proxy_url"] == f"http://acme.prod.mailer~i-1:{secret}@127.0.0.1:8080"
    rule = worker.tokens[made["token_id"]]
    assert (rule.digest, rule.tls) == (digest_of(secret), "intercept")
    listed = (await control.call("GET", "/v1/tokens")).body
    assert secret not in str(listed)
    assert [token["token_id"] for token in listed["tokens"]] == [made["token_id"]]


async def test_a_revoked_token_is_gone_from_the_worker_when_the_answer_comes(control, worker):
    made = (await control.call("POST", "/v1/tokens", {"selector": "agent://a/b"})).body
    reply = await control.call("DELETE", f"/v1/tokens/{made['token_id']}")
    assert reply.body == {"ok": True, "revoked": made["token_id"]}
    assert worker.tokens == {}
    assert (await control.beat(made["secret"])).status == 401
    assert (await control.call("DELETE", f"/v1/tokens/{made['token_id']}")).status == 404


async def test_a_worker_that_joins_later_gets_the_tokens(control):
    made = (await control.call("POST", "/v1/tokens", {"selector": "agent://a/b"})).body
    assert list((await Worker(control).join()).tokens) == [made["token_id"]]


async def test_keys_are_made_listed_and_revoked(control):
    made = (await control.call("POST", "/v1/keys", {"name": "ada", "role": "operator"})).body
    assert made["role"] == "operator"
    again = await control.call("POST", "/v1/keys", {"name": "ada", "role": "viewer"})
    assert (again.status, again.body["error"]["code"]) == (409, "conflict")
    names = [key["name"] for key in (await control.call("GET", "/v1/keys")).body["keys"]]
    assert names == ["admin", "ada"]
    assert (await control.call("DELETE", f"/v1/keys/{made['key_id']}")).body["revoked"] == made[
        "key_id"
    ]
    assert (await control.call("DELETE", "/v1/keys/admin")).status == 409


async def test_every_change_is_audited_without_its_secret(control):
    token = (await control.call("POST", "/v1/tokens", {"selector": "agent://a/b"})).body
    await control.call("DELETE", f"/v1/tokens/{token['token_id']}")
    await control.key("ada", "viewer")
    await control.call("DELETE", "/v1/keys/ada")
    events = await control.events()
    assert [event["event_type"] for event in events] == [
        "key.created",
        "token.created",
        "token.revoked",
        "key.created",
        "key.revoked",
    ]
    assert {event["actor"] for event in events[1:]} == {"key:admin"}
    assert "hwa_" not in str(events)


async def test_the_first_start_leaves_an_admin_key_and_later_ones_do_not(tmp_path):
    async with running_control(tmp_path) as control:
        first = control.admin_key
        assert (await control.call("GET", "/v1/keys")).status == 200
    async with running_control(tmp_path) as control:
        assert control.admin_key == first
        assert (await control.call("GET", "/v1/keys")).status == 200
        assert (await control.event_types()).count("key.created") == 1


async def test_a_start_that_ended_in_between_uses_the_key_it_left(tmp_path):
    left = "hwk_" + "k" * 43
    async with opened(tmp_path / "haltwire.db"):
        pass
    (tmp_path / "admin.key").write_text(left + "\n")
    async with running_control(tmp_path) as control:
        assert control.admin_key == left
        assert (await control.call("GET", "/v1/keys")).status == 200


URLS = {
    "an agent": ("http://127.0.0.1:8080", "agent://a/b", "http://a.b:S@127.0.0.1:8080"),
    "an instance": ("http://127.0.0.1:8080", "agent://a/b~i-1", "http://a.b~i-1:S@127.0.0.1:8080"),
    "a glob of instances": (
        "http://127.0.0.1:8080",
        "agent://a/b~i-*",
        "http://a.b:S@127.0.0.1:8080",
    ),
    "a glob": ("http://127.0.0.1:8080", "agent://a/*", None),
    "IPv6": ("http://[::1]:8080", "agent://a/b", "http://a.b:S@[::1]:8080"),
    "no proxy known": ("", "agent://a/b", None),
}


@pytest.mark.parametrize(("base", "selector", "url"), URLS.values(), ids=URLS)
def test_a_proxy_url_can_be_pasted(base, selector, url):
    assert proxy_url_of(base, Selector.parse(selector), "S") == url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("control.example.com:8081", "http://control.example.com:8080"),
        ("control.example.com", "http://control.example.com:8080"),
        ("[fd00::5]:8081", "http://[fd00::5]:8080"),
        ("", "http://127.0.0.1:8080"),
        ("evil@host", "http://127.0.0.1:8080"),
        ("a b", "http://127.0.0.1:8080"),
        ("a\r\nb", "http://127.0.0.1:8080"),
        ("x" * 300, "http://127.0.0.1:8080"),
    ],
)
def test_a_proxy_that_listens_everywhere_has_its_callers_name_for_us(host, url):
    """The header is the caller's own, and so is the secret behind it; it only must stay one host."""
    assert called_by("http://127.0.0.1:8080", host) == url


async def test_a_proxy_that_listens_on_one_address_has_that(tmp_path):
    async with running_control(tmp_path) as control:
        made = (await control.call("POST", "/v1/tokens", {"selector": "acme.prod.mailer"})).body
    assert made["proxy_url"].endswith("@127.0.0.1:8080")


async def test_it_is_named_by_the_header(tmp_path):
    async with running_control(tmp_path, proxy_anywhere=True) as control:
        session, key = control.session, (tmp_path / "admin.key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}", "Host": "control.example.com"}
        body = {"selector": "acme.prod.mailer"}
        async with session.post(f"{control.url}/v1/tokens", json=body, headers=headers) as answer:
            made = await answer.json()
    assert made["proxy_url"].endswith("@control.example.com:8080")


async def test_revoking_a_proxys_key_ends_the_links_that_it_opened_and_no_other(control, worker):
    """Without that the link stayed: the wait for its end ran out after 5 s."""
    secret = await control.key("edge", "proxy")
    other = await Worker(control, "w-2", pid=1, key=secret).join()
    await control.call("DELETE", "/v1/keys/edge")
    async with asyncio.timeout(5):
        await other.task
    assert not worker.task.done()
    reply = await control.call("GET", "/v1/proxies/connect", key=secret)
    assert reply.status == 401
    states = {
        p["proxy_id"]: p["state"]
        for p in (await control.call("GET", "/v1/proxies")).body["proxies"]
    }
    assert states["w-1"] == "connected"
    assert states.get("w-2", "out_of_reach") == "out_of_reach"
