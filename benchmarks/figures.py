"""Durations as p50, p99 and max, printed and written the same way by every benchmark of a kill."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path


def row(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and max in milliseconds; p99 of less than a hundred samples is their max."""
    ordered = sorted(value * 1e3 for value in seconds)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return {"p50": statistics.median(ordered), "p99": p99, "max": ordered[-1]}


def show(title: str, measured: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Print a table of milliseconds; the same figures by name."""
    print(f"\n{title:<44} {'n':>6} {'p50':>9} {'p99':>9} {'max':>9}")
    figures = {name: row(seconds) for name, seconds in measured.items() if seconds}
    for name, figure in figures.items():
        p50, p99, most = (f"{value:>9.3f}" for value in figure.values())
        print(f"{name:<44} {len(measured[name]):>6} {p50} {p99} {most}")
    return figures


def judge(name: str, value_ms: float, goal_ms: float) -> None:
    """Print whether a goal is met."""
    verdict = "met" if value_ms < goal_ms else "MISSED"
    print(f"{name}: {value_ms:.1f} ms, goal below {goal_ms:g} ms: {verdict}")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """The option that `write` obeys."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")


def write(path: Path | None, document: dict) -> None:
    """Keep the document, where one is asked for."""
    if path:
        path.write_text(json.dumps(document, indent=1))


def print_machine(where: dict[str, str]) -> None:
    """What all figures below were measured on."""
    print(
        f"{where['cpu']}, {where['system']}, Python {where['python']}, load average {where['load average']} before"
    )
