"""What is planned, as values."""

import pytest
from haltwire_cli.plans import Remote, is_exposed


def test_a_plan_shows_no_key():
    """A plan may end in a log or a traceback."""
    assert "hwk_" not in repr(Remote("https://control:8081", "hwk_" + "p" * 43))


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("http://control.example:8081", True),
        ("http://203.0.113.8", True),
        ("https://control.example:8081", False),
        ("http://127.0.0.1:8081", False),
        ("http://[::1]:8081", False),
        ("http://LOCALHOST:8081", False),
    ],
)
def test_what_goes_over_a_network_unencrypted_is_exposed(url, exposed):
    assert is_exposed(url) is exposed
