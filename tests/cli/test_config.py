"""haltwire.toml, as text: what it says, and the sentence for what it must not say."""

from pathlib import Path

import pytest
from haltwire_cli.config import FILE, FLAG, LIST, TEXT, read

FILE_PATH = Path("/etc/haltwire/haltwire.toml")
SHAPES = {
    "proxy-listen": TEXT,
    "workers": TEXT,
    "lease": TEXT,
    "insecure": FLAG,
    "allow-to": LIST,
    "tls-cert": FILE,
    "on-stale": TEXT,
}


def config(text: str):
    return read(text, FILE_PATH, SHAPES)


def refused(text: str) -> str:
    with pytest.raises(ValueError) as caught:
        config(text)
    return str(caught.value)


def test_options_are_what_one_would_type():
    said = config(
        """
        proxy-listen = "0.0.0.0:8080"
        workers = 4
        lease = 0.5
        insecure = true
        allow-to = ["10.0.0.0/8", "fd00::/8"]
        """
    )
    assert said.file == FILE_PATH
    assert said.options == {
        "proxy-listen": "0.0.0.0:8080",
        "workers": "4",
        "lease": "0.5",
        "insecure": True,
        "allow-to": ["10.0.0.0/8", "fd00::/8"],
    }
    assert (said.tokens, said.keeps) == ((), False)


def test_one_value_of_several_needs_no_list():
    assert config('allow-to = "10.0.0.0/8"').options == {"allow-to": ["10.0.0.0/8"]}


@pytest.mark.parametrize(
    ("said", "path"), [("tls/cert.pem", "/etc/haltwire/tls/cert.pem"), ("/run/c.pem", "/run/c.pem")]
)
def test_a_path_is_relative_to_the_file_itself(said, path):
    """Read in another working directory it must not mean another file."""
    assert config(f'tls-cert = "{said}"').options == {"tls-cert": path}


def test_keep_is_said_here_alone_and_goes_its_own_way():
    said = config('on-stale = "keep"')
    assert (said.keeps, said.options) == (True, {})
    said = config('on-stale = "refuse"')
    assert (said.keeps, said.options) == (False, {"on-stale": "refuse"})


def test_tokens_say_where_their_secrets_are():
    first, second = config(
        """
        [[tokens]]
        selector = "acme/prod/mailer"
        tls = "intercept"
        secret_file = "secrets/mailer"
        [[tokens]]
        selector = "agent://acme/prod/biller~i-1"
        secret_env = "BILLER"
        """
    ).tokens
    assert (str(first.selector), first.tls) == ("agent://acme/prod/mailer", "intercept")
    assert first.source == "/etc/haltwire/secrets/mailer"
    assert (str(second.selector), second.tls) == ("agent://acme/prod/biller~i-1", None)
    assert second.source == "the variable BILLER"


TOKEN = '[[tokens]]\nselector = "acme/prod/mailer"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("proxy-listen = ", "is no TOML: Invalid value (at"),
        ("a = 1\na = 2", "is no TOML: Cannot overwrite a value"),
        ('proxy_listen = "1"', "there is no 'proxy_listen': perhaps 'proxy-listen' is meant"),
        ('proxylisten = "1"', "perhaps 'proxy-listen' is meant"),
        ("token = 1", "there is no 'token': perhaps 'tokens' is meant"),
        ("xyzzy = 1", "there is no 'xyzzy'"),
        ("[workers]\nnumber = 1", "workers is a text or a number, not a table"),
        ("workers = [1, 2]", "workers has one value, not a list"),
        ("workers = true", "workers is a text or a number, not true or false"),
        ("lease = 2026-01-01", "lease is a text or a number, not datetime.date"),
        ('insecure = "yes"', "insecure is true or false, without quotes, not 'yes'"),
        ("insecure = 1", "insecure is true or false, without quotes, not 1"),
        ("allow-to = [[1]]", "allow-to is a text or a number, not a list"),
        ("tokens = 1", "tokens are written as [[tokens]]"),
        ("[tokens]\nselector = 'a'", "tokens are written as [[tokens]]"),
        ("[[tokens]]\n", "[[tokens]] number 1 says no selector"),
        (TOKEN, "needs its secret: one of secret_file"),
        (TOKEN + "secret_file = 'a'\nsecret_env = 'b'", "needs its secret: one of secret_file"),
        (TOKEN + "secret = 'a'", "there is no 'secret': perhaps 'secret_"),
        (TOKEN + "secret_env = 1", "secret_env is a text, not 1"),
        (TOKEN + "secret_env = ''", "secret_env is a text, not ''"),
        (TOKEN + "secret_env = 'A'\ntls = 'both'", "tls is tunnel or intercept, not 'both'"),
        (
            TOKEN + "secret_env = 'A'\n[[tokens]]\nselector = 'a/'\nsecret_env = 'B'",
            "[[tokens]] number 2: ",
        ),
        ("[[tokens]]\nselector = 'mailer'\nsecret_env = 'A'", "[[tokens]] number 1: "),
    ],
)
def test_what_it_must_not_say_is_refused_with_its_name(text, words):
    sentence = refused(text)
    assert sentence.startswith(str(FILE_PATH))
    assert words in sentence
    assert "\n" not in sentence
