"""The node process.

    python -m netnode --config STORE/run/config.json
    python -m netnode init --config STORE/run/config.json

`init` makes identity and namespace of a new store and ends. Otherwise it serves
until SIGTERM. Whoever started it hears through `fusefs.readiness` that it is ready
(with the port), or in one sentence why not.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from fusefs import config as configuration
from fusefs import logs, readiness
from fusefs.errors import ConfigError, FsError

log = logging.getLogger("dfs.node")


def main(argv: list[str]) -> int:
    """Exit code 0 after a stop, 1 with a sentence when it cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m netnode")
    parser.add_argument("action", nargs="?", choices=["run", "init"], default="run")
    parser.add_argument("--config", required=True, type=Path)
    arguments = parser.parse_args(argv)
    try:
        config = configuration.load(arguments.config)
    except (OSError, msgspec.DecodeError) as error:
        return fail(f"the settings in {arguments.config} cannot be read: {error}")
    logs.begin(config.log_level)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        if arguments.action == "init":
            from netnode.founding import init

            init(config)
        else:
            from netnode.running import run

            run(config)
    except ConfigError as error:
        return fail(str(error))
    except (FsError, OSError) as error:
        log.exception("cannot serve")
        return fail(f"the node cannot serve {config.store}: {error.strerror or error}")
    return 0


def fail(sentence: str) -> int:
    readiness.failed(sentence, 1)
    print(f"dfs: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    # Everything of ours is closed; threads of libraries would only delay the end.
    os._exit(code)
