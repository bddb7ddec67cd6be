"""Tokens and keys: secrets shown once, breadth said loudly."""

import json

import pytest

SECRET = "hwa_" + "s" * 43


def made(selector: str) -> dict:
    url = None if "*" in selector else f"http://acme.prod.mailer:{SECRET}@127.0.0.1:8080"
    return {
        "token_id": "T0123456789AB",
        "selector": selector,
        "secret": SECRET,
        "tls": None,
        "expires_at": None,
        "proxy_url": url,
    }


def test_a_token_is_shown_with_the_url_to_use(haltwire, control):
    control.will("POST", "/v1/tokens", made("agent://acme/prod/mailer"), 201)
    result = haltwire("token", "create", "acme.prod.mailer", "--tls", "tunnel")
    assert result.exit_code == 0
    assert control.last[3] == {"selector": "agent://acme/prod/mailer", "tls": "tunnel"}
    assert f"secret       {SECRET}" in result.stdout
    assert f"http://acme.prod.mailer:{SECRET}@127.0.0.1:8080" in result.stdout
    assert SECRET not in result.stderr


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ("agent://acme/**", "THIS TOKEN IS BROAD"),
        ("agent://**", "THIS TOKEN IS BROAD"),
        ("agent://acme/prod/mailer", "can take any instance name"),
        ("agent://acme/prod/mailer~i-*", "can take any instance name"),
        ("agent://acme/prod/mailer~i-1", ""),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_holder_could_slip_out_of_is_said(haltwire, control, selector, words, as_json):
    control.will("POST", "/v1/tokens", made(selector), 201)
    result = haltwire("token", "create", selector, *(["--json"] if as_json else []))
    assert words in result.stderr
    assert bool(words) is bool(result.stderr)
    if as_json:
        assert json.loads(result.stdout) == made(selector)


def test_tokens_are_listed_and_revoked(haltwire, control):
    row = {
        "token_id": "T0123456789AB",
        "selector": "agent://acme/prod/mailer",
        "tls": None,
        "created_at": "2026-11-22T09:30:00.000000Z",
        "created_by": "key:\x1b[2Jada",
    }
    control.will("GET", "/v1/tokens", {"ok": True, "tokens": [row]})
    shown = haltwire("token", "list").stdout
    assert "T0123456789AB" in shown
    assert "key:\\x1b[2Jada" in shown
    control.will("DELETE", "/v1/tokens/T0123456789AB", {"ok": True})
    assert haltwire("token", "revoke", "T0123456789AB").output == "Revoked T0123456789AB.\n"
    assert haltwire("token", "revoke", "T9").exit_code == 3


def test_no_tokens_is_said_with_the_way_to_one(haltwire, control):
    control.will("GET", "/v1/tokens", {"ok": True, "tokens": []})
    assert "`haltwire token create AGENT`" in haltwire("token", "list").stdout


def test_a_key_is_shown_once(haltwire, control):
    answer = {"key_id": "Y0123456789AB", "name": "ada", "role": "operator", "secret": "hwk_x"}
    control.will("POST", "/v1/keys", answer, 201)
    result = haltwire("key", "create", "ada", "--role", "operator")
    assert control.last[3] == {"name": "ada", "role": "operator"}
    assert "  hwk_x\n" in result.stdout
    assert (
        json.loads(haltwire("key", "create", "ada", "--role", "viewer", "--json").stdout) == answer
    )


def test_keys_are_listed_and_revoked_by_name(haltwire, control):
    row = {
        "key_id": "Y0123456789AB",
        "name": "ada",
        "role": "viewer",
        "created_by": "system:control",
    }
    control.will("GET", "/v1/keys", {"ok": True, "keys": [row]})
    assert "Y0123456789AB  ada   viewer" in haltwire("key", "list").stdout
    control.will("DELETE", "/v1/keys/a%20b", {"ok": True})
    assert haltwire("key", "revoke", "a b").exit_code == 0


def test_a_key_needs_a_role(haltwire):
    assert haltwire("key", "create", "ada").exit_code == 2


def test_a_token_without_a_known_proxy_says_what_is_missing(haltwire, control):
    document = {**made("agent://acme/prod/mailer"), "proxy_url": None}
    control.will("POST", "/v1/tokens", document, 201)
    out = haltwire("token", "create", "acme/prod/mailer~i-1").stdout
    assert "http://acme.prod.mailer~i-1:SECRET@HOST:PORT" in out
    assert "was not told where its proxies are (--proxy-url)" in out


KEY = {"key_id": "Y0123456789AB", "name": "edge", "role": "proxy", "secret": "hwk_" + "p" * 43}


def test_a_proxys_key_comes_with_the_line_that_starts_it(haltwire, control):
    control.will("POST", "/v1/keys", KEY, 201)
    result = haltwire("key", "create", "edge", "--role", "proxy")
    assert control.last[3] == {"name": "edge", "role": "proxy"}
    assert f"(umask 077; echo {KEY['secret']} > proxy.key)" in result.stdout
    assert f"haltwire proxy --control {control.url} --key-file proxy.key" in result.stdout
    as_json = json.loads(haltwire("key", "create", "edge", "--role", "proxy", "--json").stdout)
    command = as_json.pop("command")
    assert as_json == KEY
    assert command.startswith(f"haltwire proxy --control {control.url} ")


def test_an_operators_key_comes_without(haltwire, control):
    control.will("POST", "/v1/keys", {**KEY, "role": "viewer"}, 201)
    result = haltwire("key", "create", "edge", "--role", "viewer", "--json")
    assert "command" not in json.loads(result.stdout)
