"""A thread that writes what the job has done, so that the job need not wait for the disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["WriteBehind"]

Item = TypeVar("Item")


class WriteBehind(Generic[Item]):
    """Calls a function with one item after another, in a thread of its own.

    Few items wait at a time: what waits is lost if this process is killed, and holds memory.

    Parameters
    ----------
    write : callable
        Called with each item, in order. After an `OSError` it is not called again.
    most : int
        Items that may wait; `put` waits for room beyond.

    Examples
    --------
    >>> written = []
    >>> behind = WriteBehind(written.append, 2)
    >>> for number in range(5):
    ...     behind.put(number)
    >>> behind.close()
    >>> written
    [0, 1, 2, 3, 4]
    """

    def __init__(self, write: Callable[[Item], None], most: int) -> None:
        self._write = write
        self._waiting: queue.Queue[Item | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def put(self, item: Item) -> None:
        """Have an item written soon.

        Raises
        ------
        OSError
            That of an earlier write. Nothing has been written since.
        """
        if self._error is not None:
            raise self._error
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="computemanager-writer", daemon=True)
            self._thread.start()
        self._waiting.put(item)

    def close(self) -> OSError | None:
        """Write what waits and end the thread; the error, if there was one. May be called again."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None
        return self._error

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._write(item)
                except OSError as error:
                    self._error = error
            del item  # an item that was written must not stay in memory until the next
