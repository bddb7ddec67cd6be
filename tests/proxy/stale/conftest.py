"""Origins that are played by hand, one with TLS and one without."""

from __future__ import annotations

import pytest
from support.scripted import Stage


@pytest.fixture
async def stage(authority):
    async with Stage(authority.server_context("localhost")) as running:
        yield running


@pytest.fixture
async def plain_stage():
    async with Stage() as running:
        yield running
