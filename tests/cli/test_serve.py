"""The children's entry: they end when nobody watches them, and take the right one for the control server."""

import subprocess
import sys

STUCK = """
import os, sys, threading, time
from haltwire_cli.orphan import end_with_parent
end_with_parent()
print("stuck", flush=True)
while True: time.sleep(10)
"""


def test_a_process_whose_loop_stands_still_ends_too():
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"stuck\n"
        process.stdin.close()
        assert process.wait(2) == 1
