"""The gate's decisions, as a table: the first thing that is wrong is what the agent is told."""

from datetime import datetime, timezone

import pytest
from haltwire.wire.messages import Settings, Snapshot, TokenRule
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill
from haltwire.wire.refusals import Refusal
from haltwire.wire.selectors import Selector
from haltwire_proxy.gate import Held, decide
from haltwire_proxy.identity import Identity
from haltwire_proxy.replica import Replica

MAILER = AgentRef.parse("agent://acme/prod/mailer")
WHO = Identity(MAILER, "i-1", "T1", None, True, "hwa_secret")
TOKEN = TokenRule("T1", "d1", Selector.of(MAILER))
NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def kill(selector, mode="cut", kill_id="K1", revision=1, reason="broken link"):
    return Kill(kill_id, Selector.parse(selector), mode, reason, "key:ada", NOON, revision)


def view(*orders, tokens=(TOKEN,)):
    replica = Replica()
    replica.apply(Snapshot("e", 9, orders, (), tokens, Settings(1000)), 0.0)
    return replica.view


STOPPED = kill("agent://acme/prod/mailer")
CASES = {
    "nothing against it": (view(), 0.5, None),
    "no lease": (view(), 0.0, "enforcement_unknown"),
    "a lease that ran out": (view(), -1.0, "enforcement_unknown"),
    "a lease that is no number": (view(), float("nan"), "enforcement_unknown"),
    "its token is gone": (view(tokens=()), 0.5, "proxy_credentials_invalid"),
    "killed": (view(STOPPED), 0.5, "agent_killed"),
    "killed by a glob": (view(kill("agent://acme/**")), 0.5, "agent_killed"),
    "its instance is killed": (view(kill("agent://acme/prod/mailer~i-1")), 0.5, "agent_killed"),
    "another instance is killed": (view(kill("agent://acme/prod/mailer~i-2")), 0.5, None),
    "another agent is killed": (view(kill("agent://acme/prod/mailer2")), 0.5, None),
    "a mode that we do not know is a cut": (
        view(kill("agent://**", mode="calm-down")),
        0.5,
        "agent_killed",
    ),
    "no lease comes before killed": (view(STOPPED), 0.0, "enforcement_unknown"),
    "no token comes before killed": (view(STOPPED, tokens=()), 0.5, "proxy_credentials_invalid"),
}


@pytest.mark.parametrize("name", CASES)
def test_decision(name):
    seen, lease_left_s, code = CASES[name]
    refusal = decide(seen, WHO, lease_left_s)
    assert (refusal.code if refusal else None) == code
    if refusal is not None:
        assert (refusal.agent_uri, refusal.instance) == (str(MAILER), "i-1")


HELD = kill("agent://acme/prod/mailer", "hold")


def test_a_held_request_waits():
    assert decide(view(HELD), WHO, 0.5) == Held(HELD)


@pytest.mark.parametrize("mode", ["cut", "drain"])
def test_a_cut_or_a_drain_refuses_what_an_older_hold_would_let_wait(mode):
    wider = kill("agent://**", mode, "K2", revision=2)
    refusal = decide(view(HELD, wider), WHO, 0.5)
    assert isinstance(refusal, Refusal)
    assert refusal.kill == wider


def test_without_a_lease_nobody_waits():
    refusal = decide(view(HELD), WHO, 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "enforcement_unknown"


def test_the_oldest_order_is_named():
    """So that every refusal of one agent tells the same story, also after a second kill."""
    orders = (kill("agent://**", kill_id="K2", revision=2), STOPPED)
    refusal = decide(view(*orders), WHO, 1.0)
    assert refusal is not None
    assert refusal.kill == STOPPED
    assert b'"reason":"broken link"' in refusal.body()
    assert ("x-should-retry", "false") in refusal.headers()


def test_a_raising_decision_is_the_callers_to_refuse():
    """The gate swallows nothing: a None that comes of a fault would let a killed agent through."""
    with pytest.raises(AttributeError):
        decide(None, WHO, 1.0)
