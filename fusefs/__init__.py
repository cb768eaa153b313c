"""The file system and all local state of one dfs node. Never imports the network."""

__version__ = "0.1.0"
