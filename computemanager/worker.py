"""``computemanager worker``: the command that a provider starts on another machine.

How to reach main, and the key that main asks for, come from the environment, never from the command line,
which others on the machine can read.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import socket
import sys
from collections.abc import Sequence

from computemanager.agent import Agent, AgentSettings
from computemanager.transport import ADDRESS_VARIABLE, CLIENT_KEY_VARIABLE, SERVER_KEY_VARIABLE

__all__ = ["main"]

_NAME_VARIABLE = "COMPUTEMANAGER_WORKER"
_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an agent until its job is done.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the command line.

    Returns
    -------
    int
        Exit code; see `computemanager.agent.AgentEnd`. 2 if the environment lacks the join details.
    """
    options = _parser().parse_args(arguments)
    faulthandler.enable()
    logging.basicConfig(format="computemanager worker: %(message)s")
    names = (ADDRESS_VARIABLE, SERVER_KEY_VARIABLE, CLIENT_KEY_VARIABLE)
    # Taken out of the environment: the user's function has no business with them.
    details = {name: os.environ.pop(name) for name in names if name in os.environ}
    missing = [name for name in names if name not in details]
    if missing:
        sys.stderr.write(
            f"computemanager worker: {', '.join(missing)} not set. This command is started by the main "
            f"process of a job, which says in these variables how to reach it; see the documentation on "
            f"remote workers\n"
        )
        return _USAGE_ERROR
    settings = AgentSettings(
        name=options.name or os.environ.pop(_NAME_VARIABLE, None) or f"{socket.gethostname()}-{os.getpid()}",
        slots=_processors() if options.slots == "auto" else int(options.slots),
        grace_s=options.grace,
        join_timeout_s=options.join_timeout,
        ends_in_s=options.max_runtime,
    )
    return Agent(settings, details).run().value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="computemanager worker",
        description="Compute blocks for a main process that runs elsewhere. Where that is, and the keys, are "
        f"read from the environment ({ADDRESS_VARIABLE}, {SERVER_KEY_VARIABLE}, {CLIENT_KEY_VARIABLE}).",
    )
    parser.add_argument(
        "--slots", default="1", type=_slots, help="processes that compute, or 'auto': one a processor"
    )
    parser.add_argument("--name", help="what this worker is called in messages")
    parser.add_argument(
        "--grace",
        default=30.0,
        type=_seconds,
        metavar="S",
        help="end when main has been out of reach for so many seconds (default 30)",
    )
    parser.add_argument(
        "--join-timeout",
        default=120.0,
        type=_seconds,
        metavar="S",
        help="end when main has not been reached after so many seconds (default 120)",
    )
    parser.add_argument(
        "--max-runtime",
        type=_seconds,
        metavar="S",
        help="this worker will be ended from outside so many seconds after its start: take no block that "
        "cannot be finished by then",
    )
    return parser


def _slots(text: str) -> str:
    if text != "auto" and not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0, or 'auto'")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds above 0")
    return seconds


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
