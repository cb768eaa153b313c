"""Access control lists as values; the kernel's own are compared in test_acl.py."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import Invalid, NotSupported, TooBig
from fusefs.model import acl
from fusefs.model.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry

PERM = st.integers(0, 7)
IDS = st.lists(st.integers(0, acl.NOBODY - 1), unique=True, max_size=5)


@st.composite
def lists(draw: st.DrawFn) -> acl.Acl:
    users, groups = draw(IDS), draw(IDS)
    masked = bool(users or groups) or draw(st.booleans())
    return (
        Entry(USER_OBJ, draw(PERM)),
        *(Entry(USER, draw(PERM), user) for user in users),
        Entry(GROUP_OBJ, draw(PERM)),
        *(Entry(GROUP, draw(PERM), group) for group in groups),
        *([Entry(MASK, draw(PERM))] if masked else []),
        Entry(OTHER, draw(PERM)),
    )


@given(lists())
def test_a_list_is_what_it_was_encoded_from(found: acl.Acl) -> None:
    assert acl.decode(acl.encode(found)) == found


@given(lists(), st.integers(0, 0o7777))
def test_the_mode_of_a_list_is_the_mode_it_was_shown_with(
    found: acl.Acl, mode: int
) -> None:
    after = acl.shown(found, mode)
    bits, whole = acl.as_mode(after)
    assert bits == mode & 0o777
    assert whole == (len(found) == 3)
    assert [e._replace(perm=0) for e in after] == [e._replace(perm=0) for e in found]
    assert acl.shown(after, mode) == after


@given(lists(), st.integers(0, 0o7777))
def test_what_is_made_below_a_default_may_no_more_than_both_say(
    default: acl.Acl, wanted: int
) -> None:
    found, mode = acl.inherited(default, wanted)
    assert mode & ~0o777 == wanted & ~0o777
    assert mode & 0o777 == wanted & 0o777 & acl.as_mode(default)[0]
    assert bool(found) == (len(default) > 3)
    assert not found or acl.as_mode(found) == (mode & 0o777, False)


_VALID = acl.encode((Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5), Entry(OTHER, 0)))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"", Invalid),
        (_VALID[:-1], Invalid),
        (_VALID + b"\0", Invalid),
        (struct.pack("<I", 3) + _VALID[4:], NotSupported),
        (_VALID[:4] + bytes(4096), TooBig),
        (acl.encode((Entry(USER_OBJ, 7),)), Invalid),
        (acl.encode((Entry(GROUP_OBJ, 7), Entry(OTHER, 7))), Invalid),
        (
            acl.encode((Entry(USER_OBJ, 8), Entry(GROUP_OBJ, 7), Entry(OTHER, 7))),
            Invalid,
        ),
        (
            acl.encode(
                (
                    Entry(USER_OBJ, 7),
                    Entry(USER, 7, 1),
                    Entry(GROUP_OBJ, 7),
                    Entry(OTHER, 7),
                )
            ),
            Invalid,  # a name without a mask
        ),
        (
            acl.encode(
                (
                    Entry(USER_OBJ, 7),
                    Entry(USER, 7),
                    Entry(GROUP_OBJ, 7),
                    Entry(MASK, 7),
                    Entry(OTHER, 7),
                )
            ),
            Invalid,  # of nobody
        ),
        (
            acl.encode(
                (
                    Entry(USER_OBJ, 7),
                    Entry(GROUP_OBJ, 7),
                    Entry(USER, 7, 1),
                    Entry(MASK, 7),
                    Entry(OTHER, 7),
                )
            ),
            Invalid,  # not in order
        ),
        (acl.encode((Entry(1, 7), Entry(4, 7), Entry(64, 7), Entry(32, 7))), Invalid),
        (acl.encode((*acl.decode(_VALID), Entry(OTHER, 0))), Invalid),
    ],
)
def test_what_is_no_list(value: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        acl.decode(value)


def test_an_empty_list_is_none() -> None:
    assert acl.decode(acl.encode(())) == ()
