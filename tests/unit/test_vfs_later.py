"""Work that nobody waits for: in order, and none of it once it is closed."""

from __future__ import annotations

import threading

from fusefs.vfs.later import Later


def test_one_after_the_other_and_nothing_after_the_end() -> None:
    later, done = Later("test"), []
    may_go_on, began = threading.Event(), threading.Event()

    def first() -> None:
        began.set()
        assert may_go_on.wait(30)
        done.append(1)

    later.submit(first)
    later.submit(done.append, 2)
    assert began.wait(30)
    closing = threading.Thread(target=later.close)
    closing.start()
    may_go_on.set()
    closing.join(30)
    assert done in ([1], [1, 2])
    there = list(done)
    later.submit(done.append, 3)
    later.close()
    assert done == there


def test_unused_it_ends_at_once() -> None:
    later, done = Later("test"), []
    later.close()
    later.submit(done.append, 1)
    later.close()
    assert done == []
