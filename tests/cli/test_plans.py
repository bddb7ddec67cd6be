"""What is planned, as values."""

from haltwire_cli.plans import Remote


def test_a_plan_shows_no_key():
    """A plan may end in a log or a traceback."""
    assert "hwk_" not in repr(Remote("https://control:8081", "hwk_" + "p" * 43))
