"""Who is calling, as a table: what a client sends, and whom the proxy takes it for or why not."""

import base64
import hashlib

import pytest
from haltwire.wire.messages import TokenRule
from haltwire.wire.refusals import Refusal
from haltwire.wire.selectors import Selector
from haltwire_proxy.identity import Identity, agrees, identify

MAILER = "agent://acme/prod/mailer"
PINNED = "hwa_" + "p" * 43
"The token of MAILER."
BOUND = "hwa_" + "b" * 43
"The token of one instance of MAILER."
PATTERN = "hwa_" + "i" * 43
"The token of the instances of MAILER that are named job-…"
GLOB = "hwa_" + "g" * 43
"The token of every agent in agent://acme/prod."
PLACE = "hwa_" + "a" * 43
"The token of MAILER as seen at one peer address."
SELECTORS = {
    PINNED: MAILER,
    BOUND: f"{MAILER}~i-7f3a",
    PATTERN: f"{MAILER}~job-*",
    GLOB: "agent://acme/prod/*",
    PLACE: f"{MAILER}~ip:192.0.2.7",
}
PEER = "192.0.2.7"


def rule(secret, selector, tls=None):
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return TokenRule(f"T-{secret[4]}", digest, Selector.parse(selector), tls)


RULES = [rule(secret, selector, "intercept") for secret, selector in SELECTORS.items()]
TOKENS = {each.digest: each for each in RULES}


def basic(text):
    return (b"Proxy-Authorization", b"Basic " + base64.b64encode(text.encode()))


def bearer(secret):
    return (b"proxy-authorization", b"Bearer " + secret.encode())


def raw(value):
    return (b"Proxy-Authorization", value)


def uri(value):
    return (b"X-Agent-URI", value.encode("latin-1"))


def instance(value):
    return (b"X-Agent-Instance", value.encode("latin-1"))


ACCEPTED = {
    "label with dots": ([basic(f"acme.prod.mailer:{PINNED}")], MAILER, "ip:192.0.2.7", False),
    "label and instance": ([basic(f"acme.prod.mailer~i-1:{PINNED}")], MAILER, "i-1", True),
    "label with slashes": ([basic(f"acme/prod/mailer:{PINNED}")], MAILER, "ip:192.0.2.7", False),
    "whole URI, last colon splits": ([basic(f"{MAILER}:{PINNED}")], MAILER, "ip:192.0.2.7", False),
    "axios does not decode": (
        [basic(f"agent%3A%2F%2Facme%2Fprod%2Fmailer%7Ei-1:{PINNED}")],
        MAILER,
        "i-1",
        True,
    ),
    "bearer": ([bearer(PINNED)], MAILER, "ip:192.0.2.7", False),
    "schemes are in any case": (
        [raw(b"bEaReR   " + PINNED.encode())],
        MAILER,
        "ip:192.0.2.7",
        False,
    ),
    "blanks around the value": ([raw(b" \tBearer " + PINNED.encode() + b" ")], MAILER, None, False),
    "instance by header": ([bearer(PINNED), instance("i-2")], MAILER, "i-2", True),
    "header that repeats the label": (
        [basic(f"acme.prod.mailer~i-2:{PINNED}"), uri(MAILER), instance("i-2")],
        MAILER,
        "i-2",
        True,
    ),
    "bound token needs no name": ([bearer(BOUND)], MAILER, "i-7f3a", True),
    "bound token and its name": ([basic(f"acme.prod.mailer~i-7f3a:{BOUND}")], MAILER, None, True),
    "instance within a glob": ([bearer(PATTERN), instance("job-9")], MAILER, "job-9", True),
    "glob token, label names": (
        [basic(f"acme.prod.billing:{GLOB}")],
        "agent://acme/prod/billing",
        None,
        False,
    ),
    "glob token, header names": (
        [bearer(GLOB), uri("agent://acme/prod/billing"), instance("i-1")],
        "agent://acme/prod/billing",
        "i-1",
        True,
    ),
    "token of a peer address, at it": ([bearer(PLACE)], MAILER, "ip:192.0.2.7", False),
    "other X-Agent headers say nothing": (
        [bearer(PINNED), (b"X-Agent-Id", b"other"), (b"X-Agent-Id", b"another")],
        MAILER,
        None,
        False,
    ),
    "underscore twins say nothing": (
        [bearer(PINNED), (b"X_Agent_URI", b"agent://acme/prod/billing")],
        MAILER,
        None,
        False,
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name):
    headers, agent, expected_instance, named = ACCEPTED[name]
    identity = identify([(b"Host", b"example.test"), *headers], TOKENS, PEER)
    assert isinstance(identity, Identity), identity
    assert str(identity.agent) == agent
    assert identity.instance == (expected_instance or identity.instance)
    assert identity.named is named
    assert identity.tls == "intercept"


STRICT = base64.b64encode(f"acme.prod.mailer:{PINNED}".encode())
LOOSE = STRICT[:-3] + bytes([STRICT[-3] + 1]) + b"=="
"Decodes to the same as STRICT, so that one credential would have two forms."


def test_loose_bits_decode_to_the_same():
    assert base64.b64decode(LOOSE, validate=True) == base64.b64decode(STRICT)


REQUIRED, INVALID = "proxy_credentials_required", "proxy_credentials_invalid"
MISMATCH, MALFORMED = "identity_mismatch", "malformed_request"
REFUSED = {
    "nothing": ([], REQUIRED),
    "Authorization is for the origin": ([(b"Authorization", b"Bearer x")], REQUIRED),
    "underscore twin is no credential": ([(b"Proxy_Authorization", b"Bearer x")], REQUIRED),
    "unknown secret": ([basic("acme.prod.mailer:hwa_no")], INVALID),
    "unknown bearer": ([bearer("hwa_no")], INVALID),
    "empty": ([raw(b"")], INVALID),
    "scheme alone": ([raw(b"Basic")], INVALID),
    "other scheme": ([raw(b"Digest username=x")], INVALID),
    "not Base64": ([raw(b"Basic !!!!")], INVALID),
    "Base64 without padding": (
        [raw(b"Basic " + base64.b64encode(f"acme.prod.mailer:{PINNED}".encode()).rstrip(b"="))],
        INVALID,
    ),
    "Base64 with loose bits": ([raw(b"Basic " + LOOSE)], INVALID),
    "Base64 with a newline": ([raw(b"Basic YWI6\nY3Q=")], INVALID),
    "no colon": ([basic(PINNED)], INVALID),
    "empty secret": ([basic("acme.prod.mailer:")], INVALID),
    "empty label": ([basic(f":{PINNED}")], INVALID),
    "placeholder label": ([basic(f"user:{PINNED}")], INVALID),
    "empty instance": ([basic(f"acme.prod.mailer~:{PINNED}")], INVALID),
    "label with NUL": ([basic(f"acme.prod.mailer\0:{PINNED}")], INVALID),
    "label with upper case": ([basic(f"Acme.prod.mailer:{PINNED}")], INVALID),
    "label decoded twice": ([basic(f"acme%252Eprod%252Emailer:{PINNED}")], INVALID),
    "non-ASCII label": ([basic(f"acme.prod.mäiler:{PINNED}")], INVALID),
    "non-ASCII bearer": ([raw(b"Bearer hwa_\xff")], INVALID),
    "ten kilobytes": ([raw(b"Bearer " + b"x" * 10_000)], INVALID),
    "long but valid Base64": ([basic("a" * 600 + ":" + PINNED)], INVALID),
    "forged label": ([basic(f"acme.prod.billing:{PINNED}")], MISMATCH),
    "forged header": ([bearer(PINNED), uri("agent://acme/prod/billing")], MISMATCH),
    "label and header differ": (
        [basic(f"acme.prod.a:{GLOB}"), uri("agent://acme/prod/b")],
        MISMATCH,
    ),
    "label and header differ in the instance": (
        [basic(f"acme.prod.mailer~a:{PINNED}"), instance("b")],
        MISMATCH,
    ),
    "beyond the token's selector": ([basic(f"acme.dev.mailer:{GLOB}")], MISMATCH),
    "another instance than the bound one": ([bearer(BOUND), instance("i-1")], MISMATCH),
    "instance beyond the glob": ([bearer(PATTERN), instance("web-1")], MISMATCH),
    "no instance where the token demands one": ([bearer(PATTERN)], "agent_required"),
    "glob token, nobody named": ([bearer(GLOB)], "agent_required"),
    "two credentials": ([bearer(PINNED), bearer(PINNED)], MALFORMED),
    "two credentials in different case": (
        [bearer(PINNED), (b"PROXY-AUTHORIZATION", b"Bearer x")],
        MALFORMED,
    ),
    "comma-joined": ([raw(b"Bearer " + PINNED.encode() + b", Bearer x")], MALFORMED),
    "two URIs": ([bearer(PINNED), uri(MAILER), uri(MAILER)], MALFORMED),
    "two instances": ([bearer(PINNED), instance("a"), instance("a")], MALFORMED),
    "URI is none": ([bearer(PINNED), uri("mailer?")], MALFORMED),
    "empty URI": ([bearer(PINNED), uri("")], MALFORMED),
    "non-ASCII URI": ([bearer(PINNED), uri("agent://acme/prod/mäiler")], MALFORMED),
    "instance is none": ([bearer(PINNED), instance("a b")], MALFORMED),
    "instance poses as a peer address": ([bearer(PINNED), instance("ip:10.0.0.1")], MALFORMED),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    headers, code = REFUSED[name]
    refusal = identify([(b"Host", b"example.test"), *headers], TOKENS, PEER)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.code == code


def test_token_of_a_peer_address_elsewhere_is_a_mismatch():
    """Else a stolen token would act under the name of the place it was stolen from."""
    refusal = identify([bearer(PLACE)], TOKENS, "192.0.2.8")
    assert isinstance(refusal, Refusal)
    assert refusal.code == MISMATCH


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_echoes_nothing(name):
    headers, _ = REFUSED[name]
    refusal = identify(headers, TOKENS, PEER)
    assert isinstance(refusal, Refusal)
    for _, value in headers:
        for word in value.split():
            assert len(word) < 12 or word == MAILER.encode() or word not in refusal.body()


def test_the_secret_is_not_in_the_repr():
    identity = identify([bearer(PINNED)], TOKENS, PEER)
    assert PINNED not in repr(identity)


FIRST = identify([basic(f"acme.prod.mailer~i-1:{PINNED}")], TOKENS, PEER)
UNNAMED = identify([bearer(PINNED)], TOKENS, PEER)
OF_GLOB = identify([basic(f"acme.prod.billing:{GLOB}")], TOKENS, PEER)
SWITCHED = "identity_switched"
LATER = {
    "the same": (FIRST, [basic(f"acme.prod.mailer~i-1:{PINNED}")], True, None),
    "the same in another form": (FIRST, [bearer(PINNED), instance("i-1")], True, None),
    "silent about the instance": (FIRST, [bearer(PINNED)], True, None),
    "silent about the agent": (OF_GLOB, [bearer(GLOB)], True, None),
    "silent inside a tunnel": (FIRST, [], False, None),
    "silent in the open": (FIRST, [], True, REQUIRED),
    "another instance": (FIRST, [basic(f"acme.prod.mailer~i-2:{PINNED}")], True, SWITCHED),
    "another instance by header": (FIRST, [instance("i-2")], False, SWITCHED),
    "an unnamed one names itself": (UNNAMED, [bearer(PINNED), instance("i-2")], True, SWITCHED),
    "another agent by label": (OF_GLOB, [basic(f"acme.prod.other:{GLOB}")], True, SWITCHED),
    "another agent by header": (FIRST, [uri("agent://acme/prod/other")], False, SWITCHED),
    "another token of the same agent": (FIRST, [bearer(BOUND)], True, SWITCHED),
    "other credentials inside a tunnel": (FIRST, [bearer(GLOB)], False, SWITCHED),
    "an unknown secret": (FIRST, [bearer("hwa_no")], True, INVALID),
    "broken credentials": (FIRST, [raw(b"Basic !")], True, INVALID),
    "two credentials": (FIRST, [bearer(PINNED), bearer(PINNED)], True, MALFORMED),
    "other X-Agent headers say nothing": (FIRST, [(b"X-Agent-Id", b"other")], False, None),
}


@pytest.mark.parametrize("name", LATER)
def test_a_later_head_on_the_same_connection(name):
    identity, headers, required, code = LATER[name]
    refusal = agrees(headers, identity, TOKENS, PEER, required)
    assert (refusal.code if refusal else None) == code


def test_a_revoked_secret_on_a_later_head_is_invalid():
    refusal = agrees([bearer(PINNED)], FIRST, {}, PEER, True)
    assert refusal is not None
    assert refusal.code == INVALID
