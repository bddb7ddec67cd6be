"""A control server for the tests that need a whole one."""

from __future__ import annotations

import pytest
from support.control import Worker, running_control


@pytest.fixture
async def control(tmp_path):
    async with running_control(tmp_path / "data") as running:
        yield running


@pytest.fixture
async def worker(control):
    return await Worker(control).join()
