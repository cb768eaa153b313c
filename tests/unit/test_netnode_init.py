"""`python -m netnode init`: a store is made whole, or by the next mount."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from fusefs import cli
from fusefs.config import Config
from fusefs.errors import NoSpace
from fusefs.mountpoint.checks import FORMAT
from fusefs.namespace.namespace import Namespace
from netnode.founding import init


@pytest.mark.parametrize("reason", [KeyboardInterrupt, NoSpace])
def test_store_that_was_made_in_part_is_made_by_the_next_mount(
    reason: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(store=str(tmp_path), replicas=5)

    def ended(*_: object) -> None:
        raise reason

    monkeypatch.setattr(Namespace, "put_setting", ended)
    with pytest.raises(reason):
        init(config)
    monkeypatch.undo()
    init(config)
    with closing(Namespace.open(tmp_path)) as namespace:
        assert namespace.settings()[b"replicas"] == msgspec.msgpack.encode(5)
    assert not (config.run_dir / "new").exists()
    (tmp_path / "format").write_text(FORMAT)
    assert cli.main(["fsck", "--store", str(tmp_path)]) == 0
