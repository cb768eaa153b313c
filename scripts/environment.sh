# Sourced by mount.sh and tests/run.sh: the virtual environment and system packages.
# Sets nothing but functions and these names; prints to stderr only.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${DFS_VENV:-$here/.venv}
venv_is_new=
# Else Python takes modules out of the directory this is called in.
export PYTHONSAFEPATH=1
apt_is_fresh=

say() { printf '%s\n' "$*" >&2; }

# die CODE SENTENCE...
die() {
  local code=$1
  shift
  say "$program: $*"
  exit "$code"
}

# Exits with 1 below 3.11, prints "own" or "shared", version and path, with tabs: one
# that comes as a shared library is 10 to 20 % slower here (the code that runs bytecode
# calls itself through a table).
about_python='
import sys
if sys.version_info < (3, 11):
    sys.exit(1)
try:
    shared = "/libpython3" in open("/proc/self/maps").read()
except OSError:
    shared = False
kind, version = "shared" if shared else "own", "%d.%d" % sys.version_info[:2]
print(kind, version, sys.executable, sep="\t")
'

# Each python3 there is that is new enough, once: kind, version and path.
all_pythons() {
  local name about
  local names=(python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11)
  [ -z "${DFS_PYTHON:-}" ] || names=("$DFS_PYTHON")
  for name in "${names[@]}"; do
    about=$("$name" -c "$about_python" 2>/dev/null) && [ -n "$about" ] || continue
    printf '%s\t%s\n' "$about" "$(readlink -f "${about##*$'\t'}")"
  done | awk -F '\t' '!seen[$4]++ { print $1 FS $2 FS $3 }'
}

# find_python PYTHONS: of these the first that can make environments and is no shared
# library, else one that is, by path. Installs what is missing for it.
find_python() {
  local wanted kind version path
  for wanted in own shared; do
    while IFS=$'\t' read -r kind version path; do
      [ "$kind" = $wanted ] && can_make_venv "$path" "$version" || continue
      echo "$path"
      return
    done <<<"$1"
  done
  return 1
}

# can_make_venv PYTHON VERSION: perhaps after installing what is missing for it.
can_make_venv() {
  local has='import ensurepip, venv'
  "$1" -c "$has" 2>/dev/null && return
  install_packages "python$2-venv" </dev/null || return
  "$1" -c "$has" 2>/dev/null
}

# Installs a new enough Python where the distribution has one; else ends with what to do.
need_python() {
  [ -z "${DFS_PYTHON:-}" ] || die 2 "DFS_PYTHON is $DFS_PYTHON, which is no Python 3.11 or newer"
  local packages
  can_install && refresh_lists
  packages=$(python_packages) || die 2 "Python 3.11 or newer is needed, and this system's" \
    "packages have none; install one, and name it with DFS_PYTHON=/path/to/python3"
  # shellcheck disable=SC2086
  install_packages $packages ||
    die 2 "Python 3.11 or newer is needed; $(install_hint $packages)"
}

# The packages of a new enough Python, as far as is known; false where there is none.
python_packages() {
  local candidate name
  command -v apt-cache >/dev/null || { echo "python3 python3-venv"; return; }
  candidate=$(apt-cache policy python3 2>/dev/null | sed -n 's/^ *Candidate: 3\.\([0-9]*\).*/\1/p')
  # Nothing known: the lists of packages were never fetched.
  if [ "${candidate:-11}" -ge 11 ]; then echo "python3 python3-venv"; return; fi
  name=$(apt-cache pkgnames python3. | grep -xE 'python3\.1[1-9]' | sort -V | tail -n 1)
  [ -n "$name" ] && echo "$name $name-venv"
}

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

refresh_lists() {
  [ -n "$apt_is_fresh" ] || apt-get update -qq >/dev/null 2>&1 || true
  apt_is_fresh=1
}

# install_packages PACKAGE...: as root by apt-get; false when that cannot be.
install_packages() {
  can_install || return 1
  say "installing $* (apt-get)"
  local out
  refresh_lists
  out=$(DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "$@" 2>&1) || { say "$out"; return 1; }
}

# The exact command for a user without root, or on another distribution.
install_hint() {
  if command -v apt-get >/dev/null; then
    echo "sudo apt-get install -y $*"
  else
    echo "install the equivalent of Debian's $* with your package manager"
  fi
}

have_libfuse2() {
  local config
  for config in ldconfig /sbin/ldconfig /usr/sbin/ldconfig; do
    command -v "$config" >/dev/null || continue
    "$config" -p 2>/dev/null | grep -q 'libfuse\.so\.2' && return
  done
  compgen -G '/usr/lib/*/libfuse.so.2' >/dev/null || compgen -G '/lib/*/libfuse.so.2' >/dev/null
}

# libfuse 2 got a new name with 64 bit time in Ubuntu 24.04 and Debian 13.
libfuse2_package() {
  if apt-cache show libfuse2t64 2>/dev/null | grep -q '^Package: libfuse2t64'; then
    echo libfuse2t64
  else
    echo libfuse2
  fi
}

# install_project GROUP...: the virtual environment holds this checkout and the
# dependency groups. Editable, so changes of the source need no second install.
# Costs one checksum when nothing changed; else venv_is_new is set.
install_project() {
  local stamp=$venv/.installed want
  want=$(environment_stamp)
  if venv_is_whole && stamp_covers "$stamp" "$want" "$@"; then return; fi
  { exec 9>"$venv.lock"; } 2>/dev/null || die 2 "$(why_no_lock)"
  flock 9
  if ! { venv_is_whole && stamp_covers "$stamp" "$want" "$@"; }; then
    make_venv
    say "installing the project into $venv"
    local groups
    mapfile -t groups < <(group_requirements "$@")
    pip_install -e "$here" "${groups[@]}"
    any_alphabet "$venv"/lib/python*/site-packages/*dfs.pth
    compile_project
    printf '%s\n' "$want" "$*" >"$stamp"
    venv_is_new=1
  fi
  exec 9>&-
}

# any_alphabet PATHFILE...: Python before 3.13 reads these in the alphabet of LC_ALL: with C
# it would start nothing below /home/jürgen. A line of code may name the path in ASCII. (The
# other way, dev-mode-exact of hatch, costs each start 15 ms.)
any_alphabet() {
  "$venv/bin/python" -S -c '
import sys
for file in sys.argv[1:]:
    with open(file, "rb") as lines:
        paths = set(lines.read().splitlines())
    if not all(path.isascii() for path in paths):
        with open(file, "w") as lines:
            for path in paths:
                path = ascii(path.decode("utf-8", "surrogateescape"))
                lines.write(f"import sys; sys.path.append({path})\n")
' "$@"
}

# As pip does with what it installs: processes that write no bytecode (the checkout is
# another user's, or PYTHONDONTWRITEBYTECODE is set) would compile everything at each start.
compile_project() {
  "$venv/bin/python" -m compileall -q "$here/fusefs" "$here/netnode" >/dev/null || true
}

why_no_lock() {
  if [ -x "$venv/bin/dfs" ] && venv_is_whole && ! [ -w "$venv" ]; then
    echo "$venv lacks what this checkout needs; run $program once as its owner"
  elif [ -e "$venv" ] && ! [ -w "$venv" ]; then
    echo "$venv cannot be used by this user; its owner can make it readable with" \
      "'chmod -R a+rX $venv', or DFS_VENV=DIR names another place for it"
  else
    echo "$venv cannot be made: $(dirname "$venv") is not writable, or not there;" \
      "run $program once as its owner, or name another place with DFS_VENV=DIR"
  fi
}

# Not so when the system's Python has gone since, or is another version, which looks for
# packages elsewhere.
venv_is_whole() {
  local version
  version=$("$venv/bin/python" -V 2>/dev/null) || return
  version=${version#Python }
  [ -x "$venv/bin/dfs" ] && [ -d "$venv/lib/python${version%.*}" ]
}

environment_stamp() {
  {
    echo "$here"
    cat "$here/pyproject.toml"
    grep '^version' "$venv/pyvenv.cfg" 2>/dev/null || true
  } | sha256sum | cut -d' ' -f1
}

# stamp_covers FILE WANTED GROUP...
stamp_covers() {
  local file=$1 want=$2 got groups group
  shift 2
  [ -r "$file" ] || return 1
  { read -r got; read -r groups; } <"$file" || true
  [ "$got" = "$want" ] || return 1
  for group in "$@"; do
    case " $groups " in *" $group "*) ;; *) return 1 ;; esac
  done
}

make_venv() {
  if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
  local pythons python version
  pythons=$(all_pythons)
  [ -n "$pythons" ] || { need_python; pythons=$(all_pythons); }
  if ! python=$(find_python "$pythons"); then
    IFS=$'\t' read -r _ version _ <<<"$pythons"
    die 2 "Python's venv module is missing; $(install_hint "python$version-venv")"
  fi
  say "making $venv"
  "$python" -m venv --clear "$venv" || die 2 "$venv cannot be made$(if_disk_is_full)"
  # The version is part of the stamp, and is only known now.
  want=$(environment_stamp)
}

pip_install() {
  local log=$venv/install.log
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >"$log" 2>&1 && return
  tail -n 15 "$log" >&2
  say "the whole log: $log"
  die 2 "installing the Python packages failed$(if_disk_is_full); it takes them from" \
    "pypi.org, or where pip is told to (HTTPS_PROXY, PIP_INDEX_URL, PIP_FIND_LINKS)"
}

# Half a sentence; of what venv and pip say one does not always see it.
if_disk_is_full() {
  local free
  free=$(df -Pm "$(dirname "$venv")" 2>/dev/null | awk 'END { print $4 }')
  [ "${free:-999}" -ge 100 ] || echo ": its disk has $free MB free, it needs 100"
}

# The requirements of pyproject's dependency groups, one a line (pip only learned
# --group in version 25.1).
group_requirements() {
  [ $# -eq 0 ] || "$venv/bin/python" - "$here/pyproject.toml" "$@" <<'PY'
import sys, tomllib
groups = tomllib.load(open(sys.argv[1], "rb"))["dependency-groups"]
print(*(line for name in sys.argv[2:] for line in groups[name]), sep="\n")
PY
}
