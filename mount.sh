#!/usr/bin/env bash
# Mounts dfs on a directory, with everything that takes: see --help below.
set -euo pipefail
program=mount.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/environment.sh"

usage() {
  cat <<'TEXT'
usage: ./mount.sh DIR [options]        mount, and start this machine's node
       ./mount.sh DIR --join TOKEN     the same, as a member of another's cluster
       ./mount.sh -u DIR               unmount, and stop the node

The first run makes .venv beside this script and installs what is needed there; as root
it also installs Python, libfuse and fuse3 with apt where they are missing.

  --store DIR      where this node keeps its data (~/.local/share/dfs)
  --port N         TCP port for the other nodes (4000); 0 is any free one
  --listen ADDR    address to listen on (all)
  --name NAME      what people call this node (the host's name)
  --join TOKEN     token printed by `.venv/bin/dfs invite` on another node; - reads it
                   from standard input, so that `ps` does not show it
  -o OPT,...       as mount(8) takes them: ro, noatime, allow_other, _netdev, ...;
                   and every option as key=value: sync=all, binding=fusepy, ...
  -f               stay in the foreground
  -u, --unmount    unmount DIR; -l with it: even while it is in use
  -V, --version    the version of dfs
  -h, --help       this text; `.venv/bin/dfs mount --help` tells every option

The same settings can stand in ~/.config/dfs/config.toml (port = 4001) or in
environment variables (DFS_PORT=4001). Exit codes are those of mount(8).
TEXT
}

# What the chosen binding cannot do without. The kernel binding speaks to /dev/fuse
# itself: root needs nothing else, other users need fusermount3.
need_fuse() {
  local missing=()
  [ "$(id -u)" = 0 ] || command -v fusermount3 >/dev/null || missing+=(fuse3)
  [ "$binding" != fusepy ] || have_libfuse2 || missing+=("$(libfuse2_package)")
  [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}" ||
    die 2 "libfuse is missing; $(install_hint "${missing[@]}")"
  [ -e /dev/fuse ] || [ "$(id -u)" != 0 ] || modprobe fuse 2>/dev/null || true
  [ -e /dev/fuse ] || die 32 "/dev/fuse does not exist; load the kernel's module with" \
    "'modprobe fuse', or give this container the device (docker run --device /dev/fuse)"
}

# What other users, fstab or the other binding would need, where it can be had.
add_fuse() {
  can_install || return 0
  command -v fusermount3 >/dev/null || install_packages fuse3 ||
    say "going on without fuse3, which other users and fstab need"
  have_libfuse2 || install_packages "$(libfuse2_package)" ||
    say "going on without libfuse 2, which only -o binding=fusepy needs"
}

unmounting= version= binding=${DFS_BINDING:-kernel}
arguments=()
for word in "$@"; do
  case $word in
  -h | --help) usage; exit 0 ;;
  -u | --unmount | --umount) unmounting=1; continue ;;
  -V | --version) version=1; continue ;;
  *binding=fusepy*) binding=fusepy ;;
  fusepy) [ "${arguments[*]: -1}" != --binding ] || binding=fusepy ;;
  esac
  arguments+=("$word")
done
[ ${#arguments[@]} -gt 0 ] || [ -n "$version" ] || { usage >&2; exit 1; }

install_project
# With the first run only: no mount waits for a network that is not there.
[ -z "$venv_is_new" ] || add_fuse
if [ -n "$version" ]; then exec "$venv/bin/dfs" --version; fi
if [ -n "$unmounting" ]; then exec "$venv/bin/dfs" umount "${arguments[@]}"; fi
need_fuse
exec "$venv/bin/dfs" mount "${arguments[@]}"
