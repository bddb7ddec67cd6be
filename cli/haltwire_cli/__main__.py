"""`haltwire` and `python -m haltwire_cli`."""

from __future__ import annotations

import errno
import io
import os
import sys

_NO_ROOM = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """Run the command line, or say what to install when only the SDK is here."""
    try:
        import click  # noqa: F401
    except ImportError:
        sys.stderr.write(
            "The haltwire command needs more than the SDK: pip install 'haltwire[server]'\n"
        )
        sys.exit(1)
    from haltwire_cli.main import cli

    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show must not end a command that has done what it was asked for.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="haltwire")
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        sys.stderr.write(f"Error: the answer could not be written: {error.strerror}.\n")
        sys.stderr.flush()
        os._exit(1)  # an exit in good order would try to write it once more


if __name__ == "__main__":
    main()
