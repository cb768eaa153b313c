"""dfs status: what this node is, has, and is connected to. Quick whatever is stuck."""

from __future__ import annotations

import os
import re
import shlex
import time
from pathlib import Path

import msgspec

from fusefs import config
from fusefs.cli import asking, settings
from fusefs.mountpoint.exits import DEGRADED, OK
from fusefs.nodelink import control
from fusefs.plain import plain
from fusefs.store import trouble
from fusefs.supervisor import state
from fusefs.supervisor.lock import holder

ASK_S = 0.3
"""The node has this long; then what the files say is shown without it."""

TREES = 3
"""Told by name."""

DESCRIPTION = """\
Tells about the node of a mountpoint or store: its peers and how far behind each is,
what it has, and whether all is well. Exit code 0: it runs; 3: it does not, or does
not answer; 10: there is no store."""

Answer = dict[str, object]


def main(argv: list[str]) -> int:
    """Prints a page for people, or one JSON object."""
    parser = settings.Parser("status", DESCRIPTION)
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the mountpoint")
    parser.add_argument("--json", action="store_true")
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    store = settings.store_of(arguments)
    asking.check_store(store)
    answer = gather(store)
    print(msgspec.json.encode(answer).decode() if arguments.json else page(answer))
    return OK if answer["state"] == "running" else DEGRADED


def gather(store: Path) -> Answer:
    """Everything that can be known in half a second.

    `state` is running, stopped, or silent: processes are there, the node does not
    answer (it may be starting again).
    """
    node = _ask(store)
    answer: Answer = {"state": "running" if node else "stopped", "store": str(store)}
    answer.update(_processes(store))
    if not node and answer["pids"]:
        answer["state"] = "silent"
    answer.update(node)
    answer["read_only"] = trouble.is_read_only(store / "run")
    try:
        answer["min_free"] = config.load(store / "run" / "config.json").min_free
    except (OSError, msgspec.DecodeError):
        pass
    return answer


def _ask(store: Path) -> Answer:
    try:
        said = control.ask(store / "run" / "node.sock", "status", timeout_s=ASK_S)
    except (control.NotRunning, control.Refused, TimeoutError):
        return {}
    if not isinstance(said, dict):
        return {}
    if "store" in said:
        said["objects"] = said.pop("store")
    return said


def _processes(store: Path) -> Answer:
    owner = holder(store)
    now = state.read(store) if owner else None
    if owner is None or now is None or now.pid != owner.pid:  # as while fsck runs
        return {"mountpoint": None, "pids": {}}
    return {
        "mountpoint": now.mountpoint or None,
        "pids": {"supervisor": now.pid, "worker": now.worker, "node": now.node},
        "restarts": {
            "worker": max(0, now.worker_starts - 1),
            "node": max(0, now.node_starts - 1),
        },
        "trouble": now.node_trouble,
        "up_s": round(time.time() - now.started_s),
    }


# -- for people -----------------------------------------------------------------------


def page(answer: Answer) -> str:
    """A few lines; what is not known is left out."""
    get = answer.get
    lines = [_line("state", _state(answer))]
    if get("name"):
        where = f"port {get('port')}" if get("port") else ""
        lines.append(_line("node", f"{get('name')} ({get('node_id')}) {where}"))
    elif get("trouble"):
        lines.append(_line("node", f"{get('trouble')}; it is tried again"))
    lines.append(_line("store", str(get("store"))))
    if get("mountpoint"):
        lines.append(_line("mounted", str(get("mountpoint"))))
    if "inodes" in answer:
        lines.append(_line("tree", f"{get('inodes'):,} inodes, {size(get('bytes'))}"))
    if "chunks" in answer:
        here = size(get("chunk_bytes", 0))
        lines.append(_line("chunks", f"{get('chunks'):,} here, {here}"))
    lines += _disk(get("objects"), get("min_free"))
    lines += _failing(answer)
    if get("digest"):
        lines.append(_line("digest", str(get("digest"))))
    if get("sync"):
        sync = with_advice(str(get("sync")), str(get("mountpoint") or "DIR"))
        lines.append(_line("sync", sync))
    dialled = _dialled(answer)
    lines += dialled if dialled and not get("peers") else _peers(get("peers")) + dialled
    lines += _copies(get("replicas"), get("trees"))
    lines += _push(get("to_replicate"), get("rebalances"), get("peers"))
    lines += _pins(get("pins"))
    lines += _barrier(get("barrier"))
    return "\n".join(lines)


def _line(label: str, text: str) -> str:
    """Names, addresses and reasons in it come from other members."""
    return f"{label:<9}{plain(text)}".rstrip()


def _disk(objects: object, min_free: object) -> list[str]:
    free = objects.get("free_bytes") if isinstance(objects, dict) else None
    if not isinstance(free, int) or not isinstance(min_free, int):
        return []
    text = scarce(free, min_free)
    return [_line("disk", text)] if text else []


def _failing(answer: Answer) -> list[str]:
    """Programs are told an errno, and the logs may be on the same disk."""
    if answer.get("read_only"):
        return [_line("disk", "takes no writes any more: they get EROFS")]
    said = [answer.get("failing"), _of_worker(answer, "failing")]
    reports = [report for report in said if isinstance(report, dict)]
    if not reports:
        return []
    last = min(reports, key=lambda report: report["ago_s"])
    times = sum(report["times"] for report in reports)
    counted = f", {times:,} times in all" if times > 1 else ""
    text = f"{last['reason']}, {duration(last['ago_s'])} ago{counted}"
    return [_line("failing", text)]


def _of_worker(answer: Answer, key: str) -> object:
    """Of what it says of itself."""
    said = answer.get("worker")
    own = said.get("worker") if isinstance(said, dict) else None
    return own.get(key) if isinstance(own, dict) else None


def scarce(free_bytes: int, min_free: int) -> str:
    """Said of a disk on which nothing can be written; else empty."""
    if free_bytes >= min_free:
        return ""
    least = size(min_free)
    return f"{size(free_bytes)} free, less than min_free {least}: writes get ENOSPC"


def _state(answer: Answer) -> str:
    up_s = answer.get("up_s")
    text = str(answer["state"])
    if isinstance(up_s, int) and up_s >= 0 and text != "stopped":  # a clock set back
        text += f" since {duration(up_s)}"
    restarts = answer.get("restarts")
    if isinstance(restarts, dict) and any(restarts.values()):
        counted = ", ".join(f"{k} {v}" for k, v in restarts.items() if v)
        text += f", restarted: {counted}"
    return text


def _peers(peers: object) -> list[str]:
    if not isinstance(peers, list):
        return []
    if not peers:
        return [_line("peers", "none; invite one with: dfs invite")]
    lines = []
    for number, peer in enumerate(peers):
        where = f"{peer.get('name', '?'):<12} {peer.get('address') or '-':<21}"
        if peer.get("connected"):
            rtt = peer.get("rtt_ms")
            near = f"{rtt:.1f} ms" if isinstance(rtt, int | float) else ""
            lag = peer.get("lag") or 0
            text = (
                f"{where} {near:<9} {f'behind by {lag}' if lag else 'has all of ours'}"
            )
        else:
            text = f"{where} not connected{_parted(peer)}"
        lines.append(_line("" if number else "peers", text))
    return lines


def _parted(peer: dict[str, object]) -> str:
    """Since when, and why."""
    away_s, why = peer.get("away_s"), peer.get("why")
    return f" for {duration(away_s)}: {why}" if isinstance(away_s, int) else ""


def with_advice(sync: str, where: str) -> str:
    """The node's word. Of one that was refused it is that of the node that did it,
    which does not know where this one is mounted."""
    advice = f"unmount, then dfs mount {shlex.quote(where)} --join TOKEN"
    return sync.replace("dfs mount --join TOKEN", advice)


def _dialled(answer: Answer) -> list[str]:
    """While nobody is connected: who is tried, and what came of it."""
    peers, unreached = answer.get("peers"), answer.get("unreached")
    if not isinstance(peers, list) or not isinstance(unreached, list):
        return []
    if any(peer.get("connected") for peer in peers):
        return []
    lines = []
    for tried in unreached:
        error = str(tried.get("error"))
        if error.removeprefix("refused: ") != answer.get("sync"):
            text = f"{tried.get('address')}: {_ERRNO.sub(_plain, error)}, trying again"
            lines.append(_line("dialling" if peers else "joining", text))
    return lines


_ERRNO = re.compile(r"\[Errno (\d+)\].*")


def _plain(match: re.Match[str]) -> str:
    return os.strerror(int(match[1]))


def _copies(replicas: object, trees: object) -> list[str]:
    """Where directories ask for more or fewer of them."""
    if not isinstance(trees, list) or not trees:
        return []
    below = [f"{t.get('replicas')} below {t.get('path') or '/'}" for t in trees]
    shown = ", ".join(below[:TREES])
    if len(below) > TREES:
        shown += f" and {len(below) - TREES:,} other trees"
    return [_line("copies", f"{replicas} of each chunk, {shown}")]


def _push(chunks: object, rebalances: object, peers: object) -> list[str]:
    """What not all who should keep it have yet."""
    if not isinstance(chunks, int) or not isinstance(peers, list) or not peers:
        return []
    if not chunks:
        said = "who keeps what is looked through, after a change"
        return [_line("push", said)] if rebalances else []
    connected = sum(bool(peer.get("connected")) for peer in peers)
    if connected == len(peers):
        return [_line("push", f"{chunks:,} chunks are on their way to peers")]
    alone = "" if connected else "; no peer is connected"
    return [_line("push", f"{chunks:,} chunks lack copies on other members{alone}")]


def _pins(pins: object) -> list[str]:
    """Kept here by `dfs pin`."""
    if not isinstance(pins, list) or not pins:
        return []
    missing = sum(pin.get("missing_chunks", 0) for pin in pins)
    text = f"{len(pins):,} trees" if len(pins) > 1 else "1 tree"
    if missing:
        text += f", {missing:,} chunks of it are not here yet"
    return [_line("pinned", text)]


def _barrier(barrier: object) -> list[str]:
    if not isinstance(barrier, dict) or not barrier.get("count"):
        return []
    return [
        _line(
            "barrier",
            f"{barrier['count']:,} waits, p50 {barrier['p50_ms']:.1f} ms, "
            f"p95 {barrier['p95_ms']:.1f} ms, {barrier['timeouts']} timed out",
        )
    ]


def size(count: object) -> str:
    """Bytes in binary units, three digits."""
    value = float(count) if isinstance(count, int | float) else 0.0
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: int) -> str:
    """1h02m, 3m07s, 5s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
