"""The end of a process whose parent is gone: nobody would start it again, stop it, or look whether it hangs."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time

GRACE_S = 1.5
"A child ends itself within a second of its parent's death; this long after, it is ended."
_PR_SET_PDEATHSIG = 1


def end_with_parent(stdin: int = 0) -> None:
    """From now on this process does not outlive its parent, whose end of `stdin` nobody else holds.

    On Linux the kernel kills it, also when it is stopped and can notice nothing. The kernel does so when
    the thread that started it ends: a parent starts its children in its main thread. On every system a
    thread of its own ends it, also when its event loop stands still.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        poll = select.poll()
        poll.register(stdin, select.POLLHUP)
        # A parent that died before the line above has closed its end, and no signal comes for it.
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            raise SystemExit(0)
    threading.Thread(target=_watch, args=(os.dup(stdin),), name="orphan watch", daemon=True).start()


def _watch(stdin: int) -> None:
    poll = select.poll()
    poll.register(stdin, select.POLLHUP)
    poll.poll()
    time.sleep(GRACE_S)
    os._exit(1)
