"""One mount per binding and module; a fresh one where a test restarts it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.serve import BINDINGS, Mount, mounted

TEST_LIMIT_S = 120.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "binding" in metafunc.fixturenames:
        marked = [pytest.param(name, marks=pytest.mark.mount) for name in BINDINGS]
        metafunc.parametrize("binding", marked, scope="module")


def _require_fuse() -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("/dev/fuse is missing")
    if os.geteuid():
        pytest.skip("needs root to mount and to abort")


@pytest.fixture(scope="module")
def shared_mount(binding: str) -> Iterator[Mount]:
    _require_fuse()
    with mounted(binding) as made:
        yield made


@pytest.fixture
def mount(shared_mount: Mount) -> Iterator[Mount]:
    """A mount other tests of the module use too."""
    with shared_mount.guarded(TEST_LIMIT_S):
        yield shared_mount


@pytest.fixture
def own_mount(binding: str) -> Iterator[Mount]:
    """A mount and store of this test alone."""
    _require_fuse()
    with mounted(binding) as made, made.guarded(TEST_LIMIT_S):
        yield made
