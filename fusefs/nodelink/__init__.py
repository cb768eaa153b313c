"""The local socket between the processes of one node: messages, frames, clients.

`client` is what the worker uses, `control` what the command line uses; the server
side is `netnode.link`. Threads only, no event loop.
"""
