"""The cases, one module per family of system calls. Importing registers them."""

from tests.posix.cases import (  # noqa: F401
    access,
    chmod,
    chown,
    create,
    io,
    links,
    listing,
    locks,
    paths,
    rename,
    space,
    times,
    truncate,
    xattrs,
)
