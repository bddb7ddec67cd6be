"""`haltwire up` as its users have it; real clients go through it."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_asyncio
from support.authority import TestAuthority
from support.site import Site
from support.system import System


def _system(folder: Path, authority: TestAuthority) -> System:
    return System(folder / "data", "--workers", "2", "--upstream-ca", str(authority.ca_file))


@pytest.fixture
async def system(tmp_path: Path, authority: TestAuthority):
    """One for this test alone."""
    async with _system(tmp_path, authority) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_system(tmp_path_factory: pytest.TempPathFactory, authority: TestAuthority):
    """One for a module whose tests name agents of their own."""
    async with _system(tmp_path_factory.mktemp("shared"), authority) as running:
        yield running


@pytest.fixture
async def site(tmp_path_factory: pytest.TempPathFactory, authority: TestAuthority):
    folder = tmp_path_factory.mktemp("site")
    async with Site(folder, authority.server_context("localhost")) as running:
        yield running
