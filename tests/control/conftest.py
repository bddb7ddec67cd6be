"""A control server for the tests that need a whole one."""

from __future__ import annotations

import pytest
from support.control import Worker, running_control


@pytest.fixture
async def control(tmp_path):
    # Its leases outlive every test: a silent worker is pending for as long as one looks.
    async with running_control(tmp_path / "data", lease_ms=60_000) as running:
        yield running


@pytest.fixture
async def worker(control):
    return await Worker(control).join()
