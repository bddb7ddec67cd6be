"""An origin that is played by hand."""

from __future__ import annotations

import pytest
from support.scripted import Stage


@pytest.fixture
async def stage(authority):
    async with Stage(authority.server_context("localhost")) as running:
        yield running
