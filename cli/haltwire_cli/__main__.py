"""`haltwire` and `python -m haltwire_cli`."""

from __future__ import annotations

import sys


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

    cli(prog_name="haltwire")


if __name__ == "__main__":
    main()
