"""Processes with no more than an ordinary user's rights, also where the tests run as root."""

from __future__ import annotations

import os
import shutil

import pytest

IS_ROOT = os.geteuid() == 0
ORDINARY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if IS_ROOT else ()
"In front of a command: the same user, without the capabilities that make root more than that."
ANOTHER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
"In front of a command: some other user."

needs_setpriv = pytest.mark.skipif(
    IS_ROOT and shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed"
)
needs_another_user = pytest.mark.skipif(
    not IS_ROOT or shutil.which("setpriv") is None,
    reason="becomes another user, which only root with setpriv (util-linux) may",
)
