"""The environment of an agent: every client finds the proxy and trusts its CA, and no way around is left."""

import pytest
from haltwire.proxyenv import BUNDLE_VARIABLES, proxy_environment, without_ours

URL = "http://acme.prod.mailer~i-1:hwa_secret@127.0.0.1:8080"


@pytest.fixture
def environment() -> dict[str, str]:
    return proxy_environment(URL, "/ca.pem", "/ca-bundle.pem")


def test_the_proxy_is_there_in_both_cases(environment):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        assert environment[name] == environment[name.lower()] == URL


def test_no_host_is_excepted(environment):
    assert environment["NO_PROXY"] == environment["no_proxy"] == ""


def test_node_obeys(environment):
    assert environment["NODE_USE_ENV_PROXY"] == "1"


def test_every_client_trusts_the_systems_roots_and_ours(environment):
    assert {environment[name] for name in BUNDLE_VARIABLES} == {"/ca-bundle.pem"}
    assert {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"} <= set(
        BUNDLE_VARIABLES
    )


def test_node_gets_ours_alone_because_it_adds_it_to_its_own(environment):
    assert environment["NODE_EXTRA_CA_CERTS"] == "/ca.pem"


@pytest.mark.parametrize(
    "name",
    [
        "HALTWIRE_API_KEY",
        "HALTWIRE_URL",
        "HALTWIRE_DATA_DIR",
        "HALTWIRE_WHATEVER",
        "ALL_PROXY",
        "all_proxy",
        "no_proxy",
        "grpc_proxy",
        "no_grpc_proxy",
        "wss_proxy",
        "npm_config_noproxy",
        "npm_config_https_proxy",
        "GLOBAL_AGENT_HTTP_PROXY",
    ],
)
def test_what_an_agent_must_not_inherit_is_left_out(name):
    assert without_ours({name: "x", "HOME": "/root"}) == {"HOME": "/root"}


@pytest.mark.parametrize("name", ["PATH", "MY_PROXY", "CLOUDSQL_AUTH_PROXY", "PROXY", "haltwire_x"])
def test_everything_else_is_kept(name):
    assert without_ours({name: "x"}) == {name: "x"}
