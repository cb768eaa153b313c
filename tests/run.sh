#!/usr/bin/env bash
# Installs what the tests need and runs everything: ./tests/run.sh [pytest arguments]
# Ends with pytest's closing line; fails when the linters or any test failed.
# Two files of tests at a time (-n 0: one): half of the time of most is spent waiting.
set -euo pipefail
program=tests/run.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../scripts/environment.sh"
cd "$here"

# The programs that tests run, and Debian's package of each.
need_programs() {
  local missing=() program_and_package
  for program_and_package in fusermount3:fuse3 git:git rsync:rsync sqlite3:sqlite3 \
    ip:iproute2 cc:gcc make:make setfattr:attr; do
    command -v "${program_and_package%:*}" >/dev/null || missing+=("${program_and_package#*:}")
  done
  # Without which cc finds no header; only recommended by gcc.
  [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
  [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}" ||
    say "missing, so some tests will fail: $(install_hint "${missing[@]}")"
  # Apart from the others, for newer distributions do not have it any more.
  have_libfuse2 || install_packages "$(libfuse2_package)" ||
    say "libfuse 2 is missing, so tests of binding=fusepy will fail"
}

# All of them, so that one run tells everything.
lint() {
  local failed=0
  "$venv/bin/ruff" check . || failed=1
  "$venv/bin/mypy" --no-error-summary || failed=1
  "$venv/bin/lint-imports" --no-logo || failed=1
  return $failed
}

need_programs
install_project test lint
compile_project # also of what changed since
lint_failed=
lint || lint_failed=1
[ -z "$lint_failed" ] || say "$program: the linters found something, see above"

tests_failed=0
# In the order of the files, so that many short ones come last and fill both.
"$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" ||
  tests_failed=$?
[ -z "$lint_failed" ] || exit 1
exit "$tests_failed"
