"""dfs config: the settings in effect, and where each comes from."""

from __future__ import annotations

import msgspec

from fusefs.cli import settings
from fusefs.options import OPTIONS

DESCRIPTION = "Shows the settings in effect and where each of them comes from."
SECRET = frozenset({"join"})


def main(argv: list[str]) -> int:
    """Prints one line per setting, or one JSON object."""
    parser = settings.Parser("config", DESCRIPTION)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-o", dest="options", action="append", metavar="OPT,...")
    settings.add_all(parser)
    arguments = parser.parse_args(argv)
    config, origin = settings.resolve(arguments)
    shown = {}
    for option in OPTIONS:
        value = getattr(config, option.name)
        if option.name in SECRET and value:
            value = "(hidden)"
        shown[option.name] = {
            "value": value,
            "from": origin.get(option.name, "default"),
        }
    if arguments.json:
        print(msgspec.json.encode(shown).decode())
        return 0
    for name, entry in shown.items():
        print(f"{name:<16} {entry['value']!s:<40} {entry['from']}")
    return 0
