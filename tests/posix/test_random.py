"""Short runs of the two random testers; the long ones are commands."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.posix import fsx, random_ops
from tests.posix.conftest import Target


@pytest.mark.parametrize("seed", [1, 2])
def test_fsx_every_byte_is_as_written(target: Target, seed: int) -> None:
    hammer = fsx.Hammer(target.path / f"fsx{seed}", seed)
    try:
        hammer.run(1_500)
    finally:
        hammer.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_agree_with_a_local_disk(target: Target, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="oracle-") as host:
        Path(host).chmod(0o755)
        random_ops.compare(target.path, Path(host), seed, 2_500)
