"""One `haltwire up` for a module's tests; real clients go through it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.authority import TestAuthority
from support.site import Site
from support.system import System


@pytest.fixture
async def system(tmp_path: Path, authority: TestAuthority):
    options = ("--workers", "2", "--upstream-ca", str(authority.ca_file))
    async with System(tmp_path / "data", *options) as running:
        yield running


@pytest.fixture
async def site(tmp_path_factory: pytest.TempPathFactory, authority: TestAuthority):
    folder = tmp_path_factory.mktemp("site")
    async with Site(folder, authority.server_context("localhost")) as running:
        yield running
