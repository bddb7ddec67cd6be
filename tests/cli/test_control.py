"""control's options and banner; the running program is in tests/e2e/test_halves.py."""

from pathlib import Path

import pytest
from haltwire_cli.control import _banner
from haltwire_cli.home import Endpoints, Home


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--proxy-url", "proxy:8080"), "is not a proxy's URL"),
        (("--proxy-url", "http://proxy"), "is not a proxy's URL"),
        (("--proxy-url", "http://proxy:8080/x"), "is not a proxy's URL"),
        (("--proxy-url", "http://proxy:99999"), "is not a proxy's URL"),
        (("--proxy-url", "http://a:b@proxy:8080"), "each token adds its own name and secret"),
        (("--proxy-listen", "127.0.0.1:0"), "No such option"),
        (("--admin-key-file", "/no/such/file"), "does not exist"),
        (("--tls-cert", __file__), "give both or neither"),
        (("--tls-cert", __file__, "--tls-key", __file__, "--insecure"), "--insecure means no TLS"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(haltwire, arguments, words):
    result = haltwire("control", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_a_key_in_a_file_for_all_is_refused(haltwire, tmp_path):
    file = tmp_path / "admin"
    file.write_text("hwk_" + "a" * 43)
    file.chmod(0o644)
    result = haltwire("control", env={"HALTWIRE_ADMIN_KEY_FILE": str(file)})
    assert (result.exit_code, "chmod 600" in result.stderr) == (4, True)


def test_the_banner_ends_with_the_next_command():
    home = Home(Path("/srv/control"))
    lines = _banner(home, Endpoints(None, "https://127.0.0.1:8081", "/ca.pem")).splitlines()
    assert lines[-1] == "  haltwire key create --data-dir /srv/control edge --role proxy"
