"""What workers print reaches the caller's own stdout and stderr, and can never hold a worker up.

A thread a pipe reads all the time and keeps what it read; the caller's thread writes it out when it comes
by. So a caller that is busy, or whose own stdout is blocked, does not fill a worker's pipe.
"""

from __future__ import annotations

import codecs
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import IO, Literal

__all__ = ["OutputPump", "Stream"]

_MAX_KEPT = 8 * 1024 * 1024
_TAIL_LINES = 30

Stream = Literal["stdout", "stderr"]


class OutputPump:
    """Collects the output of worker processes and writes it to `sys.stdout` and `sys.stderr`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[Stream, str]] = deque()
        self._kept_size = 0
        self._dropped = 0
        self._tails: dict[str, deque[str]] = {}
        self._threads: dict[str, list[threading.Thread]] = {}

    def watch(self, worker: str, stream: Stream, pipe: IO[bytes]) -> None:
        """Start to read a pipe; the pipe is closed at its end."""
        thread = threading.Thread(
            target=self._read,
            args=(worker, stream, pipe),
            name=f"computemanager-{stream}-{worker}",
            daemon=True,
        )
        self._threads.setdefault(worker, []).append(thread)
        self._tails.setdefault(worker, deque(maxlen=_TAIL_LINES))
        thread.start()

    def take(self) -> Sequence[tuple[Stream, str]]:
        """What has been read since the last call, in order: whole lines, each with its stream."""
        if not self._kept:
            return ()
        with self._lock:
            kept, self._kept = self._kept, deque()
            dropped, self._dropped = self._dropped, 0
            self._kept_size = 0
        if dropped:
            kept.appendleft(("stderr", f"[{dropped} characters of the workers' output were dropped]\n"))
        return kept

    def put(self, worker: str, stream: Stream, text: str) -> None:
        """Add text that came another way than through a pipe of ours."""
        self._tails.setdefault(worker, deque(maxlen=_TAIL_LINES))
        self._keep(worker, stream, text)

    def flush(self) -> None:
        """Write out what has been read since the last call. Call it from the caller's thread."""
        kept = self.take()
        if not kept:
            return
        for stream, text in kept:
            # Looked up each time: a notebook or a test may have put another one there.
            target = sys.stdout if stream == "stdout" else sys.stderr
            if target is not None:
                target.write(text)
        for target in (sys.stdout, sys.stderr):
            if target is not None:
                target.flush()

    def tail(self, worker: str) -> str:
        """The last lines that a worker printed, once it has ended."""
        self._join(worker)
        return "".join(self._tails.get(worker, ()))

    def settle(self) -> None:
        """Read what is left of workers that have ended."""
        for worker in list(self._threads):
            self._join(worker)

    def close(self) -> None:
        """Read what is left of workers that have ended, and write it out."""
        self.settle()
        self.flush()

    def _join(self, worker: str) -> None:
        for thread in self._threads.pop(worker, ()):
            # A process that the user's function started may have inherited the pipe and hold it open.
            thread.join(timeout=1.0)

    def _read(self, worker: str, stream: Stream, pipe: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        rest = ""
        with pipe:
            # Whole lines only, so that those of two workers do not mix.
            for piece in iter(lambda: pipe.read1(65536), b""):  # type: ignore[attr-defined]
                lines, newline, rest = (rest + decoder.decode(piece)).rpartition("\n")
                if newline:
                    self._keep(worker, stream, lines + newline)
                elif len(rest) > 65536:
                    self._keep(worker, stream, rest)
                    rest = ""
        if rest:
            self._keep(worker, stream, rest + "\n")

    def _keep(self, worker: str, stream: Stream, text: str) -> None:
        with self._lock:
            self._kept.append((stream, text))
            self._kept_size += len(text)
            while self._kept_size > _MAX_KEPT:
                _, oldest = self._kept.popleft()
                self._kept_size -= len(oldest)
                self._dropped += len(oldest)
            self._tails[worker].extend(text.splitlines(keepends=True)[-_TAIL_LINES:])
