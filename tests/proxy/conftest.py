"""A worker in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from haltwire_proxy.authority import ensure_ca
from support.authority import TestAuthority
from support.world import World


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ensure_ca(folder)
    return folder


@pytest.fixture
async def world(data_dir: Path, authority: TestAuthority):
    async with World(data_dir, authority.ca_file, "http://127.0.0.1:1") as running:
        yield running
