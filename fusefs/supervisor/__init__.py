"""The process that owns a mount: it starts worker and node and keeps them running.

    dfs mount -> python -m fusefs.supervisor STORE MOUNTPOINT
                    |- python -m fusefs.worker     answers the kernel
                    '- python -m netnode           talks to the other nodes

It holds the lock on the store and, with the kernel binding, the /dev/fuse
descriptor, so that a dead worker is replaced without anybody's open file noticing.
It ends when the mount is gone (umount, fusermount -u) or on SIGTERM or SIGINT;
SIGHUP restarts both children on the code as it is now. It does as little as
possible, because what it does cannot be restarted.
"""
