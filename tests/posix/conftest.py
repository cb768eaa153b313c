"""Where the suites run: a local disk and each binding, one mount for a module."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.lib.serve import BINDINGS, Mount, mounted

CASE_LIMIT_S = 120.0


class Target:
    """A directory to test in. `name` selects the file of expected failures."""

    def __init__(self, name: str, path: Path, mount: Mount | None = None) -> None:
        self.name = name
        self.path = path
        self.mount = mount


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        names = ["host", *BINDINGS]
        params = [
            pytest.param(name, marks=[] if name == "host" else [pytest.mark.mount])
            for name in names
        ]
        metafunc.parametrize("target", params, indirect=True, scope="module")


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    if os.geteuid():
        pytest.skip("needs root: it acts as three users")
    name = request.param
    if name == "host":
        with tempfile.TemporaryDirectory(prefix="posix-") as made:
            Path(made).chmod(0o755)
            yield Target(name, Path(made))
        return
    if not Path("/dev/fuse").exists():
        pytest.skip("/dev/fuse is missing")
    with mounted(name) as mount:
        yield Target(name, mount.path, mount)


@pytest.fixture(autouse=True)
def _guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """A hanging mount is aborted, so that the run goes on."""
    found = request.getfixturevalue("target")
    with found.mount.guarded(CASE_LIMIT_S) if found.mount else nullcontext():
        yield
