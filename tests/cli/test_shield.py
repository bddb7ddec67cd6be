"""What another process of the same user can read of one that hides."""

import subprocess
import sys

import pytest
from support.users import ORDINARY, needs_setpriv

HIDER = """
import os, sys
from haltwire_cli.shield import hide_from_same_user
if sys.argv[1] == "hide":
    assert hide_from_same_user()
if os.fork() == 0:
    # A program that is executed is visible again, and looks at its parent as any other would.
    code = "import os; print(len(open(f'/proc/{os.getppid()}/environ', 'rb').read()) > 0)"
    os.execv(sys.executable, [sys.executable, "-c", code])
os.wait()
"""


@needs_setpriv
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no prctl elsewhere")
@pytest.mark.parametrize(("how", "readable"), [("hide", False), ("show", True)])
def test_the_environment_is_readable_only_without_hiding(how, readable):
    done = subprocess.run(
        [*ORDINARY, sys.executable, "-c", HIDER, how], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip() == "True") == readable, done.stderr
    assert ("PermissionError" in done.stderr) != readable
