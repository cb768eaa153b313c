"""The kernel binding: the /dev/fuse protocol itself.

mounting    makes the mount, gives its descriptor
server      serves it: threads, taking over a live mount
connection  what the threads share; why endless validity is safe
channel     one thread: read, dispatch, reply
names, inodes, files, control    the handlers by subject
recovery    what differs on a mount taken over from a dead worker
notify      tells the kernel what changed elsewhere
places, renames                 what of a name moved on before the kernel knew
session     INIT: what is agreed on and why
protocol, encode, lookups, ports constants and records; replies; counts; the vfs
"""
