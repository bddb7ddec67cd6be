"""Keeps this process's memory and environment from other processes of the same user.

An agent that runs as the operator may read /proc of everything that the operator runs; a key that is in
a variable of ours would be there. It cannot be kept from files which that user may read.
"""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4


def hide_from_same_user() -> bool:
    """Make /proc/PID/environ, mem and the like root's alone, and core dumps none; False where that does not exist.

    Not inherited: a program that is executed later is as visible as any.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    return int(prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)) == 0
