"""Mount namespaces that hold nothing of the tests that run beside this one.

One begins with a copy of every mount there is. Unmounted by its own test, another one's
would live on in it, and its node with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_SCRIPT = r"""
kept=$1
shift
where='s/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - fuse\.dfs .*/\1/p'
for other in $(sed -n "$where" /proc/self/mountinfo | grep -vxF -e "$kept"); do
  umount -l "$(printf %b "$other")"
done
exec "$@"
"""


def apart(command: Sequence[str], kept: Path | None = None) -> list[str]:
    """The command in a namespace of its own, where no dfs mount but `kept` is left."""
    unshare = ["unshare", "-m", "--propagation", "private"]
    return [*unshare, "sh", "-c", _SCRIPT, "sh", str(kept or ""), *command]
