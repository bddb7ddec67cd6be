"""The options that `up`, `control` and `proxy` share."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from haltwire_cli.home import Home
from haltwire_cli.serving import check_pem, where
from haltwire_cli.up import up


def test_a_file_without_certificates_is_named_with_its_option():
    with pytest.raises(click.BadParameter) as caught:
        check_pem(Path(__file__), "--ca-file")
    assert caught.value.param_hint == "'--ca-file'"


def test_the_data_directory_is_said_only_when_commands_would_not_find_it(tmp_path, monkeypatch):
    assert where(Home(tmp_path / "a b")) == f" --data-dir '{tmp_path}/a b'"
    monkeypatch.setattr("haltwire_cli.home.default_data_dir", lambda: tmp_path)
    assert where(Home(tmp_path)) == ""


@pytest.mark.parametrize(
    ("options", "hung_after_s"),
    [
        ((), 2.0),
        (("--lease", "5s"), 10.0),
        (("--lease", "200ms"), 2.0),
        (("--hung-after", "7s"), 7.0),
        (("--hung-after", "off"), None),
    ],
)
def test_how_long_a_process_may_be_silent(options, hung_after_s, monkeypatch, tmp_path):
    """Two leases: until then its silence is no news to the control server, and agents wait."""
    plans = []
    monkeypatch.setattr("haltwire_cli.up.serve", lambda plan, _: plans.append(plan))
    done = CliRunner().invoke(up, ["--data-dir", str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    (plan,) = plans
    assert plan.control.hung_after_s == plan.proxy.hung_after_s == hung_after_s
