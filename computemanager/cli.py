"""``computemanager``: the command, whose parts are imported only when they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

__all__ = ["main"]

_COMMANDS = {
    "worker": ("computemanager.worker", "compute blocks for a main process elsewhere"),
    "simulate": (
        "computemanager.simulate",
        "run the scheduler on simulated workers, with a seed that replays",
    ),
}
_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command and its arguments. Default: those of the command line.

    Returns
    -------
    int
        Exit code: 0 if all went well, 2 if there is no such command, else the command's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if words[0] not in _COMMANDS:
        sys.stderr.write(f"computemanager: there is no command {words[0]!r}\n\n{_usage()}")
        return _USAGE_ERROR
    module = import_module(_COMMANDS[words[0]][0])
    code: int = module.main(words[1:])
    return code


def _usage() -> str:
    lines = [f"  {name:10} {what}" for name, (_, what) in _COMMANDS.items()]
    return "\n".join(["Usage: computemanager COMMAND ...", "", *lines, "", "COMMAND --help says more.", ""])
