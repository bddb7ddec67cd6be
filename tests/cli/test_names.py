"""What a person types: the control server is asked only when a bare name needs it."""

import click
import pytest
from haltwire.wire.names import AgentRef
from haltwire_cli.api import Api
from haltwire_cli.failures import Failure
from haltwire_cli.home import Home
from haltwire_cli.names import (
    agent_of,
    agent_path,
    kill_id,
    kill_path,
    selector_of,
    selector_or_all,
)


@pytest.fixture
def api(control, tmp_path) -> Api:
    control.knows("agent://acme/prod/mailer", "agent://acme/dev/twin", "agent://acme/prod/twin")
    return Api(control.url, "k", Home(tmp_path), is_local=False)


def test_a_full_name_asks_nobody(api, control):
    assert str(selector_of(api, "acme/prod/x")) == "agent://acme/prod/x"
    assert control.calls == []


def test_a_bare_name_is_looked_up(api):
    assert str(selector_of(api, "mailer~i-1")) == "agent://acme/prod/mailer~i-1"


def test_an_ambiguous_name_shows_who_it_could_be(api):
    with pytest.raises(Failure, match="agent://acme/dev/twin, agent://acme/prod/twin") as caught:
        selector_of(api, "twin")
    assert caught.value.exit_code == 2


def test_a_misspelt_name_shows_who_it_may_have_been(api):
    with pytest.raises(Failure, match=r"Did you mean agent://acme/prod/mailer\?"):
        selector_of(api, "mailr")


def test_one_agent_is_not_a_glob(api):
    assert agent_of(api, "mailer~i-1") == (AgentRef(("acme", "prod", "mailer")), "i-1")
    for glob in ("acme/*", "acme/prod/mailer~i-*"):
        with pytest.raises(click.UsageError, match="is a glob"):
            agent_of(api, glob)


def test_all_is_everything(api):
    assert str(selector_or_all(api, None, everything=True)) == "agent://**"


def test_an_agents_path_is_encoded():
    path = agent_path(AgentRef(("acme", "prod", "mailer")))
    assert path == "/v1/mesh/agents/agent%3A%2F%2Facme%2Fprod%2Fmailer"


def test_a_kill_is_named_by_its_id():
    assert kill_path(kill_id("K0123456789AB")) == "/v1/mesh/kills/K0123456789AB"
    for typed in ("K1", "k0123456789ab", "K0123456789AB/notes", "mailer"):
        with pytest.raises(click.BadParameter, match="is no kill's id"):
            kill_id(typed)
