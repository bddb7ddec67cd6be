"""--limit: what is wrong is said before anything starts, with all that would be right."""

import pytest
from haltwire_proxy.limits import DEFAULTS, NAMES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("heads=5", "'heads' is no limit; the limits are head_bytes, head_fields"),
        ("head_s", "'head_s' is not NAME=VALUE"),
        ("head_s=soon", "head_s is a whole number from 1 to 3600, not 'soon'"),
    ],
)
@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_wrong_limit_is_a_usage_error(haltwire, tmp_path, text, words, way):
    arguments = ("--limit", text) if way == "option" else ()
    environment = {"HALTWIRE_LIMIT": f"head_bytes=4096 {text}"} if way == "variable" else {}
    result = haltwire("up", *arguments, env={"HALTWIRE_DATA_DIR": str(tmp_path), **environment})
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert "--limit" in result.stderr


def test_the_help_lists_every_limit_with_its_default(haltwire):
    said = " ".join(haltwire("up", "--help").stdout.split())
    for name in NAMES:
        assert f"{name}={getattr(DEFAULTS, name)}" in said
    assert "HALTWIRE_LIMIT" in said
