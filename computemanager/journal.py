"""Results on disk as they come, so that a job whose main process was killed goes on where it was.

::

    directory/
      lock             held by the process that uses the directory, whose number is in it
      identity.json    which job the results are of, for people to read as well
      records          see `computemanager.records`

A record holds some blocks that were accepted together: their numbers, their values, the name of the worker
and its copy of the job's state as of those blocks. Blocks and state are in one record because they must not
part: a block that is kept is counted in a state that is kept.

What survives: when the process is killed, everything handed to `Journal.keep` but for the last few records,
which a thread is about to write: a write that has returned is the system's. When the machine loses power or
the system crashes, all but the last few seconds: another thread asks the system to write the file out now and
then, and nobody waits for it. In both cases the last record may be torn; it is recognised by its checksums
and cut off.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import threading
import time
import warnings
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from computemanager.errors import CheckpointError, PayloadError
from computemanager.journaldir import (
    ANEW,
    IDENTITY_NAME,
    RECORDS_NAME,
    Identity,
    hold_lock,
    make_directory,
    open_own,
    settle_identity,
)
from computemanager.records import RecordFile
from computemanager.rundir import LOCK_NAME
from computemanager.writebehind import WriteBehind

__all__ = ["CheckpointWarning", "Identity", "Journal", "KeptBlocks"]

SYNC_INTERVAL_S = 5.0
"""How often the system is asked to write the records out."""

WAITING_RECORDS = 4
"""So many records at most wait to be written, and are lost if the process is killed just then."""


class CheckpointWarning(UserWarning):
    """Results are no longer kept, or kept ones were damaged; the job goes on without them."""


class KeptBlocks(Collection[int]):
    """The numbers of the blocks that are kept: 8 bytes a block, found at once.

    Examples
    --------
    >>> kept = KeptBlocks()
    >>> kept.add(3, offset=0)
    >>> 3 in kept, 2 in kept, len(kept), list(kept)
    (True, False, 1, [3])
    """

    def __init__(self) -> None:
        self._offsets = array("q")  # of the record of each block, -1 where there is none
        self._length = 0

    def add(self, number: int, offset: int) -> None:
        """Note where the record of a block begins."""
        missing = number + 1 - len(self._offsets)
        if missing > 0:
            self._offsets.extend(array("q", [-1]) * missing)
        self._length += self._offsets[number] < 0
        self._offsets[number] = offset

    def offset(self, number: int) -> int:
        """Where the record of a kept block begins, in bytes."""
        if number not in self:
            raise KeyError(f"block {number} is not kept")
        return self._offsets[number]

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._offsets) and self._offsets[number] >= 0

    def __iter__(self) -> Iterator[int]:
        return (number for number, offset in enumerate(self._offsets) if offset >= 0)

    def __len__(self) -> int:
        return self._length


class Journal:
    """What a job has computed, kept in a directory until the job is done. Made by `Journal.open`.

    Attributes
    ----------
    directory : Path
        Where it lies.
    kept : KeptBlocks
        Numbers of the blocks that were there when the journal was opened; what is kept afterwards is not
        added.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> identity = {"function": {"name": "ndvi", "code": "c0ffee"}}
    >>> with Journal.open(folder.name + "/kept", identity) as journal:
    ...     journal.keep([0, 1], ["a", "b"], worker="worker-1")
    >>> with Journal.open(folder.name + "/kept", identity) as journal:
    ...     print(list(journal.kept), journal.value(1))
    ...     journal.discard()
    [0, 1] b
    >>> folder.cleanup()
    """

    def __init__(self, directory: Path, lock: io.FileIO, records: RecordFile) -> None:
        self.directory = directory
        self.kept = KeptBlocks()
        self._lock_file = lock
        self._records = records
        self._behind = WriteBehind(records.append, WAITING_RECORDS)
        self._lock = threading.Lock()
        self._is_keeping = True
        self._states: dict[tuple[int, str], tuple[int, int]] = {}  # offset and length, by run and worker
        self._loaded: tuple[int, dict[int, Any]] = (-1, {})  # the record read last: offset, values
        self._syncing: threading.Thread | None = None
        self._synced_at = time.monotonic()
        self._sync_error: OSError | None = None
        self._run = 1 + self._look_through()

    @classmethod
    def open(cls, directory: str | os.PathLike[str], identity: Identity) -> Journal:
        """Open the journal in a directory, or begin one.

        Parameters
        ----------
        directory : str or os.PathLike
            Made, for its owner only, if it is not there; its parent must be.
        identity : mapping
            All that the results depend on, in words: parts by name, each a text or a mapping of texts. A
            journal is only opened with the identity that it was begun with.

        Returns
        -------
        Journal
            A context manager that closes itself.

        Raises
        ------
        CheckpointError
            If the directory holds another job (the message has every part that differs) or anything but
            a journal, is in use by another process, belongs to another user or may be written to by others
            (what is in it is unpickled), or cannot be made, read or written.

        Warns
        -----
        CheckpointWarning
            If a record is damaged. Those before it are used.
        """
        path = Path(os.fspath(directory))
        with contextlib.ExitStack() as stack:
            try:
                make_directory(path)
                lock = stack.enter_context(hold_lock(path))
                settle_identity(path, identity)
                descriptor = open_own(path / RECORDS_NAME)
                file = stack.enter_context(io.FileIO(descriptor, "r+b"))
                journal = cls(path, lock, RecordFile(file))
            except OSError as error:
                raise CheckpointError(
                    f"the checkpoint directory {path} cannot be used: {error}. Give a directory that this "
                    f"user may read and write, on a disk with room"
                ) from error
            stack.pop_all()
        return journal

    def keep(
        self, indexes: Sequence[int], values: Sequence[Any], worker: str, state: bytes | None = None
    ) -> None:
        """Keep the values of some blocks. May be called from any thread.

        Parameters
        ----------
        indexes : sequence of int
            Numbers of the blocks in the plan.
        values : sequence
            What the function returned for each. Large arrays are written a moment later, uncopied: if they
            are changed before that, their record is one that is damaged.
        worker : str
            Who computed them.
        state : bytes, optional
            The pickle of that worker's copy of the job's state, as of these blocks.

        Warns
        -----
        CheckpointWarning
            Once, if they cannot be kept (disk full, a value that cannot be pickled). Nothing is kept from
            then on, and the job goes on; what was kept before stays good.
        """
        with self._lock:
            if not self._is_keeping:
                return
            try:
                if self._sync_error is not None:
                    raise self._sync_error
                self._behind.put(self._records.prepare(self._run, indexes, values, worker, state))
                self._sync_now_and_then()
            except (OSError, PayloadError) as error:
                self._is_keeping = False
                self._warn_not_kept(error)

    def value(self, index: int) -> Any:
        """Return the value of a kept block, read from the disk.

        Parameters
        ----------
        index : int
            Number of the block in the plan.

        Raises
        ------
        KeyError
            If it is not kept.
        CheckpointError
            If it cannot be read or unpickled.
        """
        offset = self.kept.offset(index)
        with self._lock:
            if self._loaded[0] != offset:
                self._loaded = (-1, {})  # one record at a time is in memory
                with self._readable(f"block {index}"):
                    self._loaded = (offset, self._records.values(offset))
            return self._loaded[1][index]

    def states(self) -> list[Any]:
        """Return the state of every worker of earlier runs, as of the last of its blocks that is kept.

        Raises
        ------
        CheckpointError
            If one cannot be read or unpickled.
        """
        found = []
        with self._lock:
            for (run, worker), (offset, length) in self._states.items():
                with self._readable(f"the state of {worker} in run {run}"):
                    found.append(pickle.loads(self._records.read(offset, length)))
        return found

    def close(self) -> None:
        """Close the journal and leave it for the next run. May be called again."""
        with self._lock:
            was_keeping, self._is_keeping = self._is_keeping, False
        error = self._behind.close()
        if error is not None and was_keeping:
            self._warn_not_kept(error)
        if self._syncing is not None:
            self._syncing.join()
        self._records.close()
        self._lock_file.close()

    def discard(self) -> None:
        """Close the journal and remove it: the job is done. The directory goes too if it is empty then.

        Warns
        -----
        CheckpointWarning
            If a file cannot be removed.
        """
        self._is_keeping = False
        self._behind.close()
        try:
            with contextlib.suppress(ValueError):  # it is closed
                self._records.clear()  # what is not needed any more need not reach the disk
            if os.name == "nt":
                self.close()  # files in use cannot be removed there
            # The lock goes last, records before the identity: records without one would be nobody's.
            for name in (RECORDS_NAME, IDENTITY_NAME, LOCK_NAME):
                (self.directory / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it
                self.directory.rmdir()
        except OSError as error:
            warnings.warn(
                f"the job is done, but its checkpoint cannot be removed: {error}. Delete {self.directory}",
                CheckpointWarning,
                stacklevel=2,
            )
        finally:
            self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _look_through(self) -> int:
        """Note what is there; return the number of the last run."""
        last_run = 0
        for entry in self._records.entries():
            last_run = max(last_run, entry.run)
            for number in entry.blocks:
                self.kept.add(number, entry.offset)
            if entry.state is not None:
                self._states[entry.run, entry.worker] = entry.state
        if self._records.damage:
            warnings.warn(
                f"the checkpoint in {self.directory} is damaged: {self._records.damage} at byte "
                f"{self._records.end} of {RECORDS_NAME!r}. The {len(self.kept)} blocks before that are good, "
                f"the others are computed again",
                CheckpointWarning,
                stacklevel=4,
            )
        return last_run

    def _warn_not_kept(self, error: Exception) -> None:
        warnings.warn(
            f"results are no longer kept in {self.directory}: {error}. The job goes on; if it is "
            f"killed, it resumes from what was kept before",
            CheckpointWarning,
            stacklevel=3,
        )

    def _sync_now_and_then(self) -> None:
        """Let a thread have the records written out: on a slow disk that takes seconds."""
        now = time.monotonic()
        busy = self._syncing is not None and self._syncing.is_alive()
        if not busy and now - self._synced_at >= SYNC_INTERVAL_S:
            self._synced_at = now
            self._syncing = threading.Thread(target=self._sync, name="computemanager-journal", daemon=True)
            self._syncing.start()

    def _sync(self) -> None:
        try:
            self._records.sync()
        except OSError as error:
            self._sync_error = error

    @contextlib.contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        """Say what to do if something that is kept cannot be read."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"{what} cannot be read from the checkpoint in {self.directory}: {type(error).__name__}: "
                f"{error}. {ANEW}"
            ) from error
