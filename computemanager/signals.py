"""SIGTERM as an exception, so that clean-up runs; then the signal does what it would have done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "terminated_as_exception"]


class Terminated(BaseException):
    """The process was asked to end (SIGTERM) while a job ran."""


_depth = 0


@contextmanager
def terminated_as_exception() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated`; after the block, it is delivered as before.

    Only in the main thread, and only where the host program has no handler of its own: a program that
    handles SIGTERM goes on doing so. Where that handler raises, our clean-up runs all the same. May be
    nested: the outermost block restores and delivers.
    """
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _depth == 0 and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    received = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:  # a second one must not interrupt the clean-up that the first has started
            received = True
            raise Terminated("SIGTERM received")

    if _depth == 0:
        signal.signal(signal.SIGTERM, on_signal)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if received:
                os.kill(os.getpid(), signal.SIGTERM)
