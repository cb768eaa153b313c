"""A disk that takes no writes any more: what can be read is, and all are told."""

from __future__ import annotations

import errno

import pytest

from tests.lib import disks
from tests.lib.cluster import Cluster, errno_of, holds, status_page, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]
CONTENT = bytes(range(256)) * 4000
AFTER = b"written when the disk of the other took nothing"


def test_a_disk_that_takes_no_writes_is_told(fresh: Cluster) -> None:
    a, b = fresh.add(), fresh.add()
    a.store.mkdir()
    words = disks.ext4_on(a.store.with_suffix(".img"), 96 << 20)
    with disks.mounted(a.store, words):
        a.mount("--min-free=1M")
        b.mount(token=a.token())
        fresh.wait_near()
        (a.mnt / "large").write_bytes(CONTENT)
        (a.mnt / "small").write_bytes(b"small")
        fresh.wait_equal()
        disks.stop_writes(a.store)

        refused = {
            "create": errno_of(lambda: (a.mnt / "new").touch()),
            "mkdir": errno_of(lambda: (a.mnt / "directory").mkdir()),
            "unlink": errno_of(lambda: (a.mnt / "small").unlink()),
            "write": errno_of(lambda: (a.mnt / "small").write_bytes(CONTENT)),
        }
        assert refused == dict.fromkeys(refused, errno.EROFS)
        assert (a.mnt / "large").read_bytes() == CONTENT
        page = status_page(str(a.mnt))
        assert "disk     takes no writes any more: they get EROFS" in page
        status = a.status()
        assert status["worker"]["worker"]["failing"]["reason"].endswith("file system")

        (b.mnt / "after").write_bytes(AFTER)
        wait_until(lambda: a.status()["failing"] is not None, "the node is told, too")
        wait_until(
            lambda: [p.get("why") for p in b.status()["peers"]] == ["its disk fails"],
            "and who cannot be connected with it",
        )
        a.destroy()  # as it is, nothing could be noted of an unmount
    with disks.mounted(a.store, ["-o", "loop", str(a.store.with_suffix(".img"))]):
        a.mount("--min-free=1M")
        wait_until(lambda: holds(a.mnt / "after", AFTER), "what it missed is there")
        assert (a.mnt / "large").read_bytes() == CONTENT
        assert "takes no writes" not in status_page(str(a.mnt))
        a.stop()
        a.fsck()
        a.destroy()
        fresh.nodes.remove(a)
