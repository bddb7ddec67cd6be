"""How long silence is borne, as the options say it."""

import pytest
from click.testing import CliRunner
from haltwire_cli.up import up


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
