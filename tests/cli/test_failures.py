"""A failure is one sentence, whatever is in it."""

from haltwire_cli.failures import NOT_FOUND, Failure


def test_a_failure_is_one_safe_line():
    failure = Failure("no \x1b[2Jsuch\nthing", NOT_FOUND)
    assert failure.format_message() == "no \\x1b[2Jsuch\\nthing"
    assert failure.exit_code == 3


def test_it_fails_when_nothing_else_is_said():
    assert Failure("x").exit_code == 1
