"""Where an option comes from: the flag, its variable, the file, the default, in this order."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from haltwire.wire.selectors import Selector
from haltwire_cli.config import TokenEntry
from haltwire_cli.configuring import config_in_use, key_of, tokens_of
from haltwire_cli.control import control
from haltwire_cli.failures import Failure
from haltwire_cli.proxy import proxy
from haltwire_cli.serving import _every_option, proxy_plan
from haltwire_cli.up import up

SECRET = "hwa_" + "s" * 43


class Stage:
    """A working directory, a data directory, and a command that only says what it was told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.data = folder / "here", folder / "data"
        self.here.mkdir()
        self.data.mkdir()
        monkeypatch.chdir(self.here)
        self._patch = monkeypatch

    def told(self, command: click.Command, *arguments: str, **variables: str):
        """(what the command was given, the file in use) or the result when it was refused."""
        seen = {}

        def callback(**given):
            seen.update(given)
            seen["config"] = config_in_use()

        self._patch.setattr(command, "callback", callback)
        environment = {"HALTWIRE_DATA_DIR": str(self.data), **variables}
        self.result = CliRunner().invoke(command, arguments, env=environment)
        return seen

    def refused(self, command: click.Command, *arguments: str, **variables: str) -> str:
        assert self.told(command, *arguments, **variables) == {}
        assert self.result.exit_code == 2, self.result.output
        return " ".join(self.result.stderr.split())


@pytest.fixture
def stage(tmp_path, monkeypatch):
    for name in ("HALTWIRE_CONFIG", "HALTWIRE_WORKERS", "HALTWIRE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    return Stage(tmp_path, monkeypatch)


def test_a_flag_beats_its_variable_beats_the_file_beats_the_default(stage):
    (stage.here / "haltwire.toml").write_text("workers = 3")
    assert stage.told(up, "--workers", "1", HALTWIRE_WORKERS="2")["workers"] == 1
    assert stage.told(up, HALTWIRE_WORKERS="2")["workers"] == 2
    seen = stage.told(up)
    assert seen["workers"] == 3
    assert seen["config"].file == stage.here / "haltwire.toml"
    assert seen["lease"] == 1.0


def test_every_kind_of_option_is_read_by_its_own_flag(stage):
    (stage.here / "haltwire.toml").write_text(
        """
        proxy-listen = "127.0.0.1:0"
        lease = "500ms"
        allow-to = ["10.1.0.0/16", "10.2.0.0/16"]
        connect-port = [8443]
        limit = ["connections=5"]
        tls = "intercept"
        insecure = true
        """
    )
    seen = stage.told(up)
    assert (str(seen["proxy_listen"]), seen["lease"]) == ("127.0.0.1:0", 0.5)
    assert seen["allow_to"] == ("10.1.0.0/16", "10.2.0.0/16")
    assert (seen["connect_ports"], seen["limits"]) == ((8443,), ("connections=5",))
    assert (seen["tls"], seen["insecure"]) == ("intercept", True)


def test_the_file_is_looked_for_here_then_in_the_data_directory(stage, tmp_path):
    assert stage.told(up)["config"] is None
    (stage.data / "haltwire.toml").write_text("workers = 1")
    assert stage.told(up)["workers"] == 1
    (stage.here / "haltwire.toml").write_text("workers = 2")
    assert stage.told(up)["workers"] == 2
    other = tmp_path / "other.toml"
    other.write_text("workers = 3")
    assert stage.told(up, "--config", str(other))["workers"] == 3
    assert stage.told(up, HALTWIRE_CONFIG=str(other))["workers"] == 3


def test_a_data_directory_may_be_named_here_and_not_in_itself(stage, tmp_path):
    (stage.here / "haltwire.toml").write_text('data-dir = "elsewhere"')
    environment = {"HALTWIRE_DATA_DIR": ""}
    assert stage.told(up, **environment)["data_dir"] == stage.here / "elsewhere"
    (stage.here / "haltwire.toml").rename(stage.data / "haltwire.toml")
    assert "a file in the data directory cannot name another one" in stage.refused(up)


def test_what_a_flag_would_refuse_is_refused_with_the_file_and_the_key(stage):
    file = stage.here / "haltwire.toml"
    for text, words in (
        ('lease = "soon"', "lease: 'soon' is no time span"),
        ("workers = 0", "workers: 0 is not in the range"),
        ('workers = "many"', "workers: 'many' is not a valid integer"),
        ("workers = 1.5", "workers: '1.5' is not a valid integer"),
        ('allow-to = ["10.0.0.1/8"]', "allow-to: '10.0.0.1/8' is no range of addresses"),
        ('limit = ["nothing=1"]', "limit: "),
        ('upstream-ca = "none.pem"', f"upstream-ca: File '{stage.here}/none.pem' does not exist"),
        ("proxy_listen = 1", "there is no 'proxy_listen': perhaps 'proxy-listen' is meant."),
    ):
        file.write_text(text)
        assert f"Error: {file}: {words}" in stage.refused(up)


def test_a_wrong_value_that_a_flag_replaces_does_no_harm(stage):
    (stage.here / "haltwire.toml").write_text("workers = 0")
    assert stage.told(up, "--workers", "2")["workers"] == 2


def test_a_file_that_cannot_be_read_is_named(stage, tmp_path):
    assert "cannot be read" in stage.refused(up, "--config", str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    assert "it is not UTF-8" in stage.refused(up, "--config", str(tmp_path / "latin.toml"))


def test_a_file_that_anybody_may_write_is_taken_only_when_named(stage):
    """An agent that may write where `up` is started could otherwise open the way for itself."""
    file = stage.here / "haltwire.toml"
    file.write_text("workers = 2")
    file.chmod(0o666)
    assert "chmod o-w" in stage.refused(up)
    assert stage.told(up, "--config", str(file))["workers"] == 2


def test_a_working_directory_that_is_gone_has_no_file(stage):
    stage.here.rmdir()
    (stage.data / "haltwire.toml").write_text("workers = 2")
    assert stage.told(up)["workers"] == 2


def test_help_needs_no_file(stage):
    (stage.here / "haltwire.toml").write_text("nonsense")
    stage.told(up, "--help")
    assert stage.result.exit_code == 0


def test_one_file_serves_all_three_commands(stage):
    """Each takes what it has a flag for; what none has is refused by all."""
    (stage.here / "haltwire.toml").write_text(
        'workers = 2\nlease = "2s"\ncontrol = "https://control:8081"\nproxy-url = "http://p:1"'
    )
    assert stage.told(up)["workers"] == 2
    assert stage.told(control)["lease"] == 2.0
    assert "workers" not in stage.told(control)
    seen = stage.told(proxy)
    assert (seen["control"], seen["workers"]) == ("https://control:8081", 2)
    assert "lease" not in seen


@pytest.mark.parametrize("command", [up, control, proxy], ids=lambda c: c.name)
def test_every_option_but_config_can_stand_in_the_file(command):
    known = {key_of(option) for option in _every_option()}
    flags = {key_of(p) for p in command.params if p.name != "config"}
    assert flags <= known
    assert "config" not in known
    assert "help" not in known


@pytest.mark.parametrize("command", [up, control, proxy], ids=lambda c: c.name)
def test_every_option_but_the_keys_file_has_its_variable(command):
    """HALTWIRE_API_KEY stands beside --key-file."""
    without = {p.name for p in command.params if not p.envvar}
    assert without <= {"key_file"}


def entry(selector: str, file: Path | None = None, variable: str | None = None) -> TokenEntry:
    return TokenEntry(Selector.parse(selector), None, file, variable)


def test_of_a_secret_only_its_digest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("BILLER", "hwa_" + "b" * 43)
    file = tmp_path / "mailer"
    file.write_text(SECRET)
    file.chmod(0o600)
    tokens = tokens_of([entry("agent://a/mailer", file), entry("agent://a/biller", None, "BILLER")])
    assert [token.selector for token in tokens] == ["agent://a/mailer", "agent://a/biller"]
    assert all(len(token.digest) == 64 for token in tokens)
    assert SECRET not in repr(tokens)


def test_one_secret_is_not_two_agents(monkeypatch):
    monkeypatch.setenv("A", SECRET)
    with pytest.raises(Failure) as caught:
        tokens_of([entry("agent://a/b", None, "A"), entry("agent://a/c", None, "A")])
    assert "given to agent://a/b and to agent://a/c" in caught.value.format_message()
    assert SECRET not in caught.value.format_message()


@pytest.mark.parametrize(
    ("arguments", "variables", "rule"),
    [
        ((), {}, "keep"),
        (("--on-stale", "refuse"), {}, "refuse"),
        (("--on-stale", "hold"), {}, "hold"),
        ((), {"HALTWIRE_ON_STALE": "refuse"}, "refuse"),
    ],
)
def test_keep_in_the_file_is_taken_back_by_a_flag_or_a_variable(stage, arguments, variables, rule):
    (stage.here / "haltwire.toml").write_text('on-stale = "keep"\nhold-for = "3s"')
    plans = []
    stage._patch.setattr(up, "callback", lambda **given: plans.append(proxy_plan(given)))
    environment = {"HALTWIRE_DATA_DIR": str(stage.data), **variables}
    result = CliRunner().invoke(up, arguments, env=environment)
    assert result.exit_code == 0, result.output
    assert (plans[0].on_stale, plans[0].hold_for_s) == (rule, 3.0)
