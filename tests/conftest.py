"""For all tests: how hypothesis looks for examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine, not about the code. They
# are the same each time, so that no run fails by chance; not so with TEST_CHAOS=1, by
# which they may find what no change before has brought.
settings.register_profile(
    "dfs",
    deadline=None,
    derandomize=not os.environ.get("TEST_CHAOS"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dfs")
