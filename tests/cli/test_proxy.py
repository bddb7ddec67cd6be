"""proxy's options: whom it follows, and with which key. The running program is in tests/e2e/test_halves.py."""

import pytest

KEY = "hwk_" + "p" * 43
REMOTE = "https://control.example:8081"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing option '--control'"),
        (("--control", "control:8081"), "is no URL such as"),
        (("--control", "https://u:p@control:8081"), "the key goes into a file"),
        (("--control", REMOTE + "?x=1"), "the key goes into a file"),
        (("--control", "https://control:x"), "is no URL"),
        (("--control", "http://control.example:8081"), "is not encrypted"),
        (("--control", REMOTE, "--ca-file", __file__), "holds no PEM certificates"),
        (("--control", REMOTE, "--control-listen", "127.0.0.1:0"), "No such option"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(haltwire, arguments, words):
    result = haltwire("proxy", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_a_key_is_needed_and_the_way_to_it_is_said(haltwire, tmp_path):
    result = haltwire(
        "proxy", "--control", REMOTE, env={"HALTWIRE_DATA_DIR": str(tmp_path / "data")}
    )
    assert result.exit_code == 1
    assert "`haltwire key create NAME --role proxy`" in result.stderr


def test_an_operators_word_is_no_key(haltwire, tmp_path):
    file = tmp_path / "key"
    file.write_text("hwa_" + "a" * 43)
    file.chmod(0o600)
    result = haltwire("proxy", "--control", REMOTE, "--key-file", str(file))
    assert (result.exit_code, "holds an agent's token" in result.stderr) == (4, True)


def test_unencrypted_is_for_this_machine_or_must_be_said(haltwire):
    """What gets past that is asked for its key next."""
    for arguments in (
        ("--control", "http://127.0.0.1:1"),
        ("--control", "http://[::1]:1"),
        ("--control", "http://control.example:1", "--insecure"),
    ):
        result = haltwire("proxy", *arguments, env={"HALTWIRE_API_KEY": "nonsense"})
        assert "HALTWIRE_API_KEY does not hold a key" in result.stderr
