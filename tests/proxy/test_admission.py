"""The order in which the first head of a connection is judged, and by what it is refused first."""

import pytest
from haltwire_proxy.admission import Admitted, Early, Turned, admit
from haltwire_proxy.clock import boottime, utc_now
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.head import Head
from haltwire_proxy.staleness import Rule
from support.world import INTERCEPTED, SECRET, basic

PEER = "127.0.0.1"
MAILER = basic("acme.prod.mailer", SECRET)
READER = basic("acme.prod.reader", INTERCEPTED)


def head(target: str, credentials: str | None = MAILER, method="CONNECT", host=None) -> Head:
    fields = [(b"host", (host or target).encode())]
    if credentials is not None:
        fields.append((b"proxy-authorization", credentials.encode()))
    return Head(method, target.encode(), tuple(fields))


def code(turned: Admitted | Turned) -> str:
    assert isinstance(turned, Turned), turned
    return turned.refusal.code


async def test_without_orders_to_judge_by_nobody_is_even_asked_who_it_is(world):
    world.services.enforcer = Enforcer(boottime, utc_now)
    assert isinstance(admit(world.services, head("a.test:443", None), PEER), Early)
    world.services.enforcer = Enforcer(boottime, utc_now, rule=Rule("refuse"))
    turned = admit(world.services, head("a.test:443", None), PEER)
    assert code(turned) == "enforcement_unknown"
    assert not turned.of_credentials


@pytest.mark.parametrize(
    ("target", "method", "expected"),
    [
        ("a.test:443", "CONNECT", ("a.test", 443, True, False)),
        ("http://a.test/x?y", "POST", ("a.test", 80, False, True)),
        ("http://a.test:81?y", "GET", ("a.test", 81, False, True)),
        ("http://a.test#y", "GET", ("a.test", 80, False, True)),
    ],
)
async def test_what_goes_on(world, target, method, expected):
    admitted = admit(world.services, head(target, method=method, host="a.test"), PEER)
    assert isinstance(admitted, Admitted)
    assert (admitted.host, admitted.port, admitted.connect, admitted.inspect) == expected
    assert str(admitted.identity.agent) == "agent://acme/prod/mailer"
    assert not admitted.agent_api


@pytest.mark.parametrize(
    ("target", "method"),
    [("/x", "GET"), ("https://a.test/", "GET"), ("a.test", "CONNECT"), ("ftp://a.test/", "GET")],
)
async def test_a_target_that_names_no_destination(world, target, method):
    turned = admit(world.services, head(target, method=method, host="a.test"), PEER)
    assert code(turned) == "malformed_request"
    assert not turned.of_credentials


async def test_credentials_come_before_the_destination(world):
    turned = admit(world.services, head("nonsense", None), PEER)
    assert code(turned) == "proxy_credentials_required"
    assert turned.of_credentials
    assert turned.identity is None


async def test_another_authority_is_refused_and_counted_before_the_orders(world):
    world.kill("agent://acme/prod/mailer")
    turned = admit(world.services, head("a.test:443", host="b.test:443"), PEER)
    assert code(turned) == "authority_mismatch"
    (mismatch,) = world.enforcer.tallies.take_mismatches()
    assert (mismatch.source, mismatch.count) == (PEER, 1)


async def test_a_lost_lease_comes_before_a_kill(world):
    world.kill("agent://acme/prod/mailer")
    world.lose_lease()
    assert code(admit(world.services, head("a.test:443"), PEER)) == "enforcement_unknown"


async def test_a_kill_is_told_at_connect_or_inside_tls_where_that_is_read(world):
    world.kill("agent://acme/prod/mailer")
    world.kill("agent://acme/prod/reader")
    assert code(admit(world.services, head("a.test:443"), PEER)) == "agent_killed"
    told_inside = admit(world.services, head("a.test:443", READER), PEER)
    assert isinstance(told_inside, Admitted)
    assert told_inside.inspect


async def test_the_agent_api_is_there_for_the_killed_and_the_stale(world):
    world.kill("agent://acme/prod/mailer")
    world.lose_lease()
    ours = head("http://haltwire.internal/ca.pem", method="GET", host="haltwire.internal")
    admitted = admit(world.services, ours, PEER)
    assert isinstance(admitted, Admitted)
    assert admitted.agent_api


async def test_an_agents_limit_comes_last(world):
    world.limit(agent_connections=1)
    assert isinstance(admit(world.services, head("a.test:443"), PEER), Admitted)
    world.limit(agent_connections=0)
    assert code(admit(world.services, head("a.test:443"), PEER)) == "rate_exceeded"
    world.kill("agent://acme/prod/mailer")
    assert code(admit(world.services, head("a.test:443"), PEER)) == "agent_killed"
