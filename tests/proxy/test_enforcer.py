"""Orders into cuts, questions into decisions, in one step."""

from datetime import datetime, timezone

import pytest
from haltwire.wire.messages import Delta, Renewed, Settings, Snapshot
from haltwire.wire.names import AgentRef
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.identity import Identity
from support.world import SECRET, TOKENS, kill

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)
MAILER = AgentRef(("acme", "prod", "mailer"))
ME = Identity(MAILER, "i-1", TOKENS[0].token_id, None, True, SECRET)


class Client:
    written = 0
    aborted = False

    def fileno(self):
        return -1

    def unwritten(self):
        return 0

    def abort(self):
        self.aborted = True


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def enforcer(clock):
    made = Enforcer(lambda: clock[0], lambda: NOW)
    made.apply(Snapshot("e", 1, (), (), TOKENS, Settings(1000)))
    made.renewed(Renewed(clock[0], "e", 1, 1000))
    return made


def live(enforcer, identity=ME):
    client = Client()
    enforcer.connections.register(identity, "plain", "a.test", client)
    return client


def test_before_the_first_snapshot_nothing_is_known_and_nothing_passes(clock):
    blank = Enforcer(lambda: clock[0], lambda: NOW)
    assert blank.tokens is None
    refusal = blank.decide(ME)
    assert refusal is not None
    assert refusal.code == "enforcement_unknown"
    assert not blank.may_pass()


def test_a_kill_cuts_then_acknowledges_then_reports(enforcer):
    client = live(enforcer)
    enforced = enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/mailer"),)))
    assert client.aborted
    assert (enforced.ack.revision, enforced.ack.connections_cut) == (2, 1)
    (report,) = enforced.reports
    assert report.kill_id == enforced.ack.kills[0]
    assert [i.instance for i in report.instances] == ["i-1"]
    assert enforcer.decide(ME).code == "agent_killed"


def test_a_kill_of_somebody_else_cuts_nothing_here(enforcer):
    client = live(enforcer)
    enforced = enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/other"),)))
    assert not client.aborted
    assert (enforced.ack.connections_cut, enforced.reports[0].instances) == (0, ())
    assert enforcer.decide(ME) is None


def test_an_old_message_is_ignored_and_not_acknowledged(enforcer):
    enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/mailer"),)))
    assert enforcer.apply(Delta(0, 1, lifted=("K000000000002",))) is None
    assert enforcer.decide(ME).code == "agent_killed"


def test_what_was_issued_and_lifted_unseen_still_severs(enforcer):
    client = live(enforcer)
    missed = kill("agent://acme/prod/mailer", revision=2)
    enforced = enforcer.apply(Snapshot("e", 3, (), (missed,), TOKENS, Settings(1000)))
    assert client.aborted
    assert enforced.ack.kills == ()
    enforcer.renewed(Renewed(100.0, "e", 3, 1000))
    assert enforcer.decide(ME) is None


def test_another_epoch_severs_everything(enforcer):
    client = live(enforcer)
    enforcer.apply(Snapshot("other", 1, (), (), TOKENS, Settings(1000)))
    assert client.aborted


def test_a_revoked_token_severs_who_used_it(enforcer):
    client = live(enforcer)
    enforcer.apply(Delta(1, 2, revoked=(TOKENS[0].token_id,)))
    assert client.aborted


def test_the_end_of_the_lease_cuts_at_the_next_write(enforcer, clock):
    client = live(enforcer)
    clock[0] += 0.99
    assert enforcer.may_pass()
    assert not client.aborted
    clock[0] += 0.02
    assert not enforcer.may_pass()
    assert client.aborted
    assert enforcer.decide(ME).code == "enforcement_unknown"


def test_a_revision_that_is_not_applied_here_brings_no_lease(enforcer, clock):
    clock[0] += 0.9
    enforcer.renewed(Renewed(clock[0], "e", 2, 1000))
    clock[0] += 0.2
    assert not enforcer.may_pass()


def test_who_cannot_be_told_to_be_spared_is_cut(enforcer, monkeypatch, caplog):
    """The change is in force and acknowledged; a fault must not leave live what it stops."""
    client = live(enforcer)

    def fail(_):
        raise RuntimeError("injected")

    monkeypatch.setattr(enforcer, "_doomed", fail)
    enforced = enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/mailer"),)))
    assert client.aborted
    assert enforced.ack.connections_cut == 1


def test_a_report_that_fails_does_not_hold_up_the_acknowledgement(enforcer, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(enforcer, "_report", fail)
    enforced = enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/mailer"),)))
    assert enforced.ack.kills == ("K000000000002",)
    assert enforced.reports == ()
