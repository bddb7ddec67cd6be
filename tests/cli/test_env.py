"""env: the same variables for somebody else to set, in forms that their readers take literally."""

import os
import subprocess

import pytest

SECRET = "hwa_" + "s" * 43
TOKEN = "T0123456789AB"
PROXY_URL = f"http://acme.prod.mailer:{SECRET}@127.0.0.1:8080"
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture(autouse=True)
def tokens(control):
    control.will(
        "POST", "/v1/tokens", {"token_id": TOKEN, "secret": SECRET, "proxy_url": PROXY_URL}
    )
    control.will("GET", "/ca.pem", PEM.encode())
    control.will("GET", "/ca-bundle.pem", b"# a comment: with \xc3\xa9\n" + PEM.encode() * 2)


def test_sh_can_be_evaluated(haltwire, control, tmp_path):
    result = haltwire("env", "acme/prod/mailer")
    assert result.exit_code == 0
    script = result.stdout + '\nprintf "%s|%s|%s" "$HTTPS_PROXY" "$no_proxy" "$SSL_CERT_FILE"'
    environment = {"PATH": os.environ["PATH"], "no_proxy": "example.com"}
    out = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True)
    proxy, no_proxy, bundle = out.stdout.split("|")
    assert (proxy, no_proxy) == (PROXY_URL, "")
    assert bundle.startswith(str(tmp_path))
    made = next(body for method, path, _, body in control.calls if path == "/v1/tokens")
    assert made == {"selector": "agent://acme/prod/mailer", "tls": "intercept"}


def test_the_token_can_be_ended_and_the_secret_is_on_stdout_alone(haltwire):
    result = haltwire("env", "acme/prod/mailer")
    assert f"`haltwire token revoke {TOKEN}`" in result.stderr
    assert SECRET not in result.stderr
    assert SECRET in result.stdout


def test_an_operators_key_that_stays_set_is_warned_of(haltwire):
    assert "HALTWIRE_API_KEY stays set" in haltwire("env", "acme/prod/mailer").stderr


def test_dotenv_has_no_export_and_no_needless_quotes(haltwire):
    lines = haltwire("env", "acme/prod/mailer", "--format", "dotenv").stdout.splitlines()
    assert f"HTTPS_PROXY={PROXY_URL}" in lines
    assert "NO_PROXY=" in lines
    assert not any(line.startswith("export") for line in lines)


def test_k8s_is_a_secret_and_a_config_map(haltwire):
    yaml = pytest.importorskip("ruamel.yaml")
    result = haltwire("env", "acme/prod/mail_er", "--format", "k8s")
    secret, files = yaml.YAML(typ="safe", pure=True).load_all(result.stdout)
    assert (secret["kind"], files["kind"]) == ("Secret", "ConfigMap")
    assert secret["metadata"]["name"] == files["metadata"]["name"] == "haltwire-acme-prod-mail-er"
    assert secret["stringData"]["HTTPS_PROXY"] == PROXY_URL
    assert secret["stringData"]["NODE_USE_ENV_PROXY"] == "1"
    assert secret["stringData"]["SSL_CERT_FILE"] == "/etc/haltwire/ca-bundle.pem"
    assert files["data"] == {"ca.pem": PEM, "ca-bundle.pem": PEM * 2}
    assert "where no pod reaches it" in result.stderr


def test_a_glob_has_no_environment(haltwire, control):
    assert haltwire("env", "acme/*").exit_code == 2
    assert control.calls == []
