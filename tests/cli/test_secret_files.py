"""Secrets that are put down for us: who could have read them, what they are, and never a word of them."""

import pytest
from haltwire_cli.failures import NOT_ALLOWED, Failure
from haltwire_cli.secret_files import AGENT, KEY, secret_in, secret_in_variable

SECRET = "hwk_" + "k" * 43


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "key"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_file_of_ones_own_is_read(file, mode):
    file.chmod(mode)
    assert secret_in(file, KEY) == SECRET


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o444])
def test_what_everybody_may_read_is_refused_with_what_to_do(file, mode):
    """Without the look at the mode, all three were taken."""
    file.chmod(mode)
    with pytest.raises(Failure) as caught:
        secret_in(file, KEY)
    assert caught.value.exit_code == NOT_ALLOWED
    assert "chmod 600" in caught.value.format_message()
    assert SECRET not in caught.value.format_message()


@pytest.mark.parametrize(
    ("text", "prefix", "words"),
    [
        ("", KEY, "does not hold a key"),
        ("hwk_short", KEY, "does not hold a key"),
        ("hwk_" + "k" * 44, KEY, "does not hold a key"),
        ("hwk_" + "k" * 42 + "=", KEY, "does not hold a key"),
        (SECRET + " " + SECRET, KEY, "does not hold a key"),
        ("hwa_" + "a" * 43, KEY, "holds an agent's token, and this needs a key"),
        (SECRET, AGENT, "holds a key, and this needs an agent's token"),
        ("secret", AGENT, "does not hold an agent's token: that is hwa_ and 32 random bytes"),
    ],
)
def test_what_is_no_such_secret_is_refused(file, text, prefix, words):
    file.write_text(text)
    with pytest.raises(Failure) as caught:
        secret_in(file, prefix)
    assert words in caught.value.format_message()
    assert "k" * 20 not in caught.value.format_message()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(Failure, match="No such file"):
        secret_in(tmp_path / "none", KEY)


def test_a_variable_holds_one_too(monkeypatch):
    monkeypatch.setenv("THE_KEY", SECRET)
    assert secret_in_variable("THE_KEY", KEY) == SECRET
    monkeypatch.delenv("THE_KEY")
    with pytest.raises(Failure, match="THE_KEY holds no secret: it is not set"):
        secret_in_variable("THE_KEY", KEY)
