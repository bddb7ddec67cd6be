"""up's options: what is refused before anything is started, and with which sentence."""

import ast
import os
import socket
import sys
from pathlib import Path

import pytest
from haltwire_cli import main


@pytest.fixture
def refused(haltwire, tmp_path):
    """Runs `up` with options that it must refuse."""

    def run(*arguments: str, **environment: str):
        data = {"HALTWIRE_DATA_DIR": str(tmp_path / "data")}
        result = haltwire("up", *arguments, env={**data, **environment})
        assert result.exit_code in (1, 2), result.output
        return result

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--proxy-listen", "8080"), "is not HOST:PORT"),
        (("--proxy-listen", "localhost:99999"), "ports end at 65535"),
        (("--tls-cert", __file__), "give both or neither"),
        (("--tls-key", __file__), "give both or neither"),
        (("--tls-cert", "/no/such/file"), "does not exist"),
        (("--tls-cert", __file__, "--tls-key", __file__), "holds no certificate in PEM form"),
        (("--tls-cert", __file__, "--tls-key", __file__, "--insecure"), "--insecure means no TLS"),
        (("--workers", "0"), "0 is not in the range"),
        (("--lease", "1ms"), "is not between 0.2s and 60s"),
        (("--lease", "soon"), "is no time span"),
        (("--hung-after", "1s"), "is not between 2s and"),
        (("--hung-after", "never"), "is no time span: write 250ms, 2s, 10m, 2h or 1d, or off"),
        (("--drain-for", "2h"), "is not between 0s and"),
        (("--on-stale", "keep"), "is not one of"),
        (("--hold-for", "2h"), "is not between 0s and 60m"),
        (("--tls", "both"), "is not one of"),
        (("--allow-to", "10.0.0.1/8"), "is no range of addresses"),
        (("--connect-port", "0"), "0 is not in the range"),
        (("--connect-port", "65536"), "65536 is not in the range"),
        (("--upstream-ca", "/no/such/file"), "does not exist"),
        (("--upstream-ca", __file__), "holds no PEM certificates"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(refused, arguments, words):
    result = refused(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HALTWIRE_PROXY_LISTEN", "x", "is not HOST:PORT"),
        ("HALTWIRE_CONTROL_LISTEN", "x", "is not HOST:PORT"),
        ("HALTWIRE_TLS_CERT", __file__, "give both or neither"),
        ("HALTWIRE_TLS_KEY", __file__, "give both or neither"),
        ("HALTWIRE_INSECURE", "perhaps", "is not a valid boolean"),
        ("HALTWIRE_WORKERS", "0", "0 is not in the range"),
        ("HALTWIRE_LEASE", "x", "is no time span"),
        ("HALTWIRE_HUNG_AFTER", "x", "is no time span"),
        ("HALTWIRE_DRAIN_FOR", "x", "is no time span"),
        ("HALTWIRE_ON_STALE", "keep", "is not one of"),
        ("HALTWIRE_HOLD_FOR", "x", "is no time span"),
        ("HALTWIRE_TLS", "x", "is not one of"),
        ("HALTWIRE_ALLOW_TO", "10.0.0.0/8 x", "'x' is no range"),
        ("HALTWIRE_CONNECT_PORT", "8443 x", "'x' is not a valid integer"),
        ("HALTWIRE_UPSTREAM_CA", "/no/such/file", "does not exist"),
    ],
)
def test_every_option_can_come_from_its_variable(refused, variable, value, words):
    result = refused(**{variable: value})
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize("option", ["--proxy-listen", "--control-listen"])
def test_a_taken_port_is_named_with_its_holder_and_the_option(refused, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        others = [o for o in ("--proxy-listen", "--control-listen") if o != option]
        result = refused(option, address, others[0], "127.0.0.1:0")
    assert result.exit_code == 1
    sentence = result.stderr
    assert sentence.startswith(f"Error: {address} is taken by ")
    assert f"(pid {os.getpid()})" in sentence
    assert sentence.endswith(f"choose another address with {option}.\n")


def test_a_missing_extra_is_named_with_the_line_to_install(refused, monkeypatch):
    monkeypatch.setattr("haltwire_cli.serving._MODULES", ("aiohttp", "no_such_module"))
    result = refused()
    assert result.exit_code == 1
    assert (
        result.stderr == "Error: haltwire up needs no_such_module: pip install 'haltwire[server]'\n"
    )


def test_an_old_python_is_told_so_in_one_sentence(refused, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    result = refused()
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: haltwire up needs Python 3.12 or newer")
    assert result.stderr.count("\n") == 1


NEWER = {"compose", "serve", "supervisor"}
"Imported only once the Python is known to be new enough."


@pytest.mark.parametrize(
    "module",
    [m for m in sorted(Path(main.__file__).parent.glob("[!d]*.py")) if m.stem not in NEWER],
    ids=lambda m: m.stem,
)
def test_an_old_python_gets_as_far_as_that_sentence(module):
    """Newer syntax anywhere on the way would be a traceback instead."""
    ast.parse(module.read_text(), feature_version=(3, 10))
