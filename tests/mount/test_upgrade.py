"""`dfs upgrade` under a running `make`: nothing fails, nothing is built twice."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lib.cluster import Cluster, dfs

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

FILES = 50
BUILDS = 3 if os.environ.get("TEST_BIG", "") == "1" else 1
UPGRADES = 5
"""During each build, as long as it takes so long."""
LIMIT_S = 200


def write_project(top: Path) -> None:
    """A library of FILES sources that share a header, and a program using it all."""
    top.mkdir()
    numbers = range(FILES)
    declared = "".join(f"int f{n}(int);\n" for n in numbers)
    (top / "all.h").write_text(f"#pragma once\n#include <stdio.h>\n{declared}")
    for n in numbers:
        body = "".join(f"  x = (x * {n + 3} + {k}) % 10007;\n" for k in range(200))
        (top / f"f{n}.c").write_text(
            f'#include "all.h"\nint f{n}(int x) {{\n{body}  return x;\n}}\n'
        )
    calls = "".join(f"  x = f{n}(x);\n" for n in numbers)
    (top / "main.c").write_text(
        f'#include "all.h"\nint main(void) {{\n  int x = 1;\n{calls}'
        '  printf("%d", x);\n  return 0;\n}\n'
    )
    (top / "Makefile").write_text(
        "objects := $(patsubst %.c,%.o,$(wildcard f*.c))\n"
        "program: main.o all.a\n\tcc -o $@ $^\n"
        "all.a: $(objects)\n\trm -f $@\n\tar rc $@ $^\n"
        "%.o: %.c all.h\n\tcc -O2 -c -o $@ $<\n\techo $@ >> built\n"
        "clean:\n\trm -f *.o *.a program built\n"
    )


def expected() -> str:
    x = 1
    for n in range(FILES):
        for k in range(200):
            x = (x * (n + 3) + k) % 10007
    return str(x)


def make(top: Path, *words: str) -> str:
    done = subprocess.run(
        ["make", *words], cwd=top, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_make_goes_on_while_the_mount_is_upgraded(fresh: Cluster) -> None:
    for program in ("cc", "ar", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    (a,) = fresh.start(1)
    top = a.mnt / "project"
    write_project(top)
    upgrades = 0
    for _ in range(BUILDS):
        with subprocess.Popen(
            ["make", "-j4"],
            cwd=top,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as building:
            for _ in range(UPGRADES):
                if building.poll() is None:
                    dfs("upgrade", str(a.mnt))
                    upgrades += 1
            out, _ = building.communicate(timeout=LIMIT_S)
        assert building.returncode == 0, out[-3000:]
        built = (top / "built").read_text().split()
        assert sorted(built) == sorted([f"f{n}.o" for n in range(FILES)] + ["main.o"])
        done = subprocess.run([top / "program"], capture_output=True, text=True)
        assert done.stdout == expected()
        assert "up to date" in make(top)
        make(top, "clean")
    print(f"{upgrades} upgrades during {BUILDS} builds")
    assert upgrades >= BUILDS
