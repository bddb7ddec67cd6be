"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import pytest
from hypothesis import settings
from support.authority import TestAuthority
from support.client import Wire
from support.origin import Origin

# A shared machine decides how long an example takes; what it finds must not depend on that.
settings.register_profile("haltwire", deadline=None)
settings.load_profile("haltwire")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("origin-ca"))


@pytest.fixture
async def origin():
    async with Origin() as running:
        yield running


@pytest.fixture
async def tls_origin(authority: TestAuthority):
    async with Origin(authority.server_context("localhost", "127.0.0.1")) as running:
        yield running


@pytest.fixture(autouse=True)
async def close_wires():
    yield
    while Wire.opened:
        Wire.opened.pop().close()
