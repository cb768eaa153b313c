"""dfs node: the network half alone, supervised, in the foreground by default."""

from __future__ import annotations

from fusefs.cli import launching, settings
from fusefs.cli.mount import wait_for_last_node, warn_of_full_disk
from fusefs.mountpoint import checks

DESCRIPTION = """\
Runs a node without a mount: it keeps the namespace, stores and serves chunks. In the
foreground, as service managers want it; --background returns when it is ready."""


def main(argv: list[str]) -> int:
    """Runs until SIGTERM or SIGINT, or returns 0 when the background node is ready."""
    parser = settings.Parser("node", DESCRIPTION)
    parser.add_argument("--background", action="store_true", help="return when ready")
    settings.add_all(parser)
    arguments = parser.parse_args(argv)
    config = settings.resolve(arguments, foreground=not arguments.background).config
    wait_for_last_node("node", config)
    checks.check_store(config)
    checks.check_port(config)
    warn_of_full_disk("node", config)
    if config.foreground:
        launching.replace_process(config)
    facts = launching.start(config)
    print(f"node {config.name} runs on port {facts.get('port', config.port)}")
    print(f"store: {config.store}")
    return 0
