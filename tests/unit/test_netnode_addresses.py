"""Where others are told to look for this node."""

from __future__ import annotations

from pathlib import Path

import pytest

from netnode import addresses, interfaces
from netnode.addresses import MOST, reachable

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.8.0.0/24 2 0 2
        |-- 10.8.0.0
           /24 link UNICAST
        |-- 10.8.0.5
           /32 host LOCAL
        |-- 10.8.0.255
           /32 link BROADCAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.8.0.0/24 2 0 2
        |-- 10.8.0.5
           /32 host LOCAL
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 169.254.7.7
        /32 host LOCAL
     |-- 192.168.1.20
        /32 host LOCAL
"""
IF_INET6 = """\
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
20010db8000000000000000000000007 04 40 00 82     eth0
20010db8000000000000000000000008 04 40 00 01     eth0
20010db8000000000000000000000009 04 40 00 20     eth0
fd000000000000000000000000000002 05 40 00 80     tun0
00000000000000000000000000000001 01 80 10 80       lo
"""
FOUND = ["10.8.0.5", "192.168.1.20", "2001:db8::7", "fd00::2"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One with two networks and no default route."""
    for name, text in (("FIB_TRIE", FIB_TRIE), ("IF_INET6", IF_INET6)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(interfaces, name, tmp_path / name)
    monkeypatch.setattr(addresses, "_towards", lambda family, target: None)
    return monkeypatch


def test_interfaces_that_are_up_are_found(machine: pytest.MonkeyPatch) -> None:
    assert interfaces.outside() == FOUND


def test_what_proc_does_not_tell_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIB_TRIE", "IF_INET6"):
        monkeypatch.setattr(interfaces, name, tmp_path / "absent")
    assert interfaces.outside() == []


def test_this_machine_tells_of_itself_without_failing() -> None:
    assert not any(host.startswith("127.") for host in interfaces.outside())


def test_without_a_default_route_every_network_is_named(
    machine: pytest.MonkeyPatch,
) -> None:
    assert reachable("", 4000) == (
        "10.8.0.5:4000",
        "192.168.1.20:4000",
        "[2001:db8::7]:4000",
        "[fd00::2]:4000",
    )
    assert reachable("0.0.0.0", 1) == ("10.8.0.5:1", "192.168.1.20:1")
    assert reachable("::", 1) == ("[2001:db8::7]:1", "[fd00::2]:1")


def test_default_route_comes_first_and_few_are_named(
    machine: pytest.MonkeyPatch,
) -> None:
    machine.setattr(addresses, "_towards", lambda family, target: "192.168.1.20")
    assert reachable("", 1)[:2] == ("192.168.1.20:1", "10.8.0.5:1")
    many = [f"10.0.0.{n}" for n in range(20)]
    machine.setattr(interfaces, "outside", lambda: many)
    assert len(reachable("", 1)) == MOST


def test_without_a_network_it_is_reachable_from_itself(
    machine: pytest.MonkeyPatch,
) -> None:
    machine.setattr(interfaces, "outside", list)
    assert reachable("", 7) == ("127.0.0.1:7",)


@pytest.mark.parametrize(
    ("advertise", "address"),
    [
        ("nas", "nas:5"),
        ("nas:9", "nas:9"),
        ("192.0.2.3", "192.0.2.3:5"),
        ("2001:db8::1", "[2001:db8::1]:5"),
        ("[2001:db8::1]:9", "[2001:db8::1]:9"),
    ],
)
def test_what_is_advertised_is_all_that_is_told(advertise: str, address: str) -> None:
    assert reachable("", 5, advertise) == (address,)


def test_one_address_listened_on_is_all_that_is_told() -> None:
    assert reachable("2001:db8::1", 5) == ("[2001:db8::1]:5",)
