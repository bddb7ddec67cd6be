"""The options that `up`, `control` and `proxy` share."""

from pathlib import Path

import click
import pytest
from haltwire_cli.home import Home
from haltwire_cli.serving import check_pem, where


def test_a_file_without_certificates_is_named_with_its_option():
    with pytest.raises(click.BadParameter) as caught:
        check_pem(Path(__file__), "--ca-file")
    assert caught.value.param_hint == "'--ca-file'"


def test_the_data_directory_is_said_only_when_commands_would_not_find_it(tmp_path, monkeypatch):
    assert where(Home(tmp_path / "a b")) == f" --data-dir '{tmp_path}/a b'"
    monkeypatch.setattr("haltwire_cli.home.default_data_dir", lambda: tmp_path)
    assert where(Home(tmp_path)) == ""
