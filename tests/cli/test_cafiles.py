"""The CA files: where `up` left them, or copies of a remote server's."""

import pytest
from haltwire_cli.api import Api
from haltwire_cli.cafiles import ca_files
from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints, Home


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "data")


def test_local_files_are_used_where_they_are(home):
    with home.claimed():
        home.publish(Endpoints("http://127.0.0.1:8080", "http://127.0.0.1:8081", "/ca.pem"))
        files = ca_files(Api("http://127.0.0.1:8081", "k", home, is_local=True))
    assert files == (home.path / "public/ca.pem", home.path / "public/ca-bundle.pem")


def test_a_control_server_alone_is_asked_for_those_of_its_proxies(home, control):
    """What lies in its own directory signs nothing that an agent sees."""
    control.will("GET", "/ca.pem", b"theirs")
    control.will("GET", "/ca-bundle.pem", b"all")
    with home.claimed():
        home.publish(Endpoints(None, control.url, "/ca.pem"))
        ours, _ = ca_files(Api(control.url, "k", home, is_local=True))
    assert ours.read_bytes() == b"theirs"


def test_a_remote_servers_are_copied_and_kept_apart(home, control):
    control.will("GET", "/ca.pem", b"ours")
    control.will("GET", "/ca-bundle.pem", b"all")
    ours, bundle = ca_files(Api(control.url, "k", home, is_local=False))
    assert (ours.read_bytes(), bundle.read_bytes()) == (b"ours", b"all")
    assert sorted(p.name for p in ours.parent.iterdir()) == ["ca-bundle.pem", "ca.pem"]
    assert ours.parent.parent == home.path / "remote"


def test_a_server_without_them_leaves_nothing_half(home, control):
    with pytest.raises(Failure):
        ca_files(Api(control.url, "k", home, is_local=False))
    assert not list(home.path.rglob("*.pem"))
