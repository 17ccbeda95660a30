"""Reading in the main process: when a block is asked for, or ahead of it in threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from applier.ports import BlockSource, ReadBlock
from computemanager.errors import WaitTimeoutError

__all__ = ["read_blocks"]


def read_blocks(
    source: BlockSource, read_workers: int, timeout_s: float | None = None, kept: Container[int] = ()
) -> Generator[Any, None, None]:
    """Yield every block with its content as a `ReadBlock`, in order.

    Parameters
    ----------
    source : BlockSource
        The blocks, and how to read them.
    read_workers : int
        Threads that read ahead, twice as many blocks as there are threads. With 0 a block is read when it
        is asked for.
    timeout_s : float, optional
        Give up when a block has not been read after so many seconds. Needs a thread.
    kept : container of int
        Numbers of blocks that nobody will compute: they are yielded as they are, without their content.

    Raises
    ------
    WaitTimeoutError
        After `timeout_s`.
    """
    if read_workers == 0:
        for number, block in enumerate(source):
            yield block if number in kept else _read(source, block)
        return
    pool = ThreadPoolExecutor(read_workers, thread_name_prefix="applier-read")
    ahead: deque[Future[Any]] = deque()
    try:
        for number, block in enumerate(source):
            ahead.append(_done(block) if number in kept else pool.submit(_read, source, block))
            if len(ahead) > 2 * read_workers:
                yield _result(ahead.popleft(), timeout_s)
        while ahead:
            yield _result(ahead.popleft(), timeout_s)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(source: BlockSource, block: Any) -> ReadBlock:
    started = time.perf_counter()
    content = source.read(block)
    return ReadBlock(block, content, time.perf_counter() - started)


def _done(block: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(block)
    return future


def _result(future: Future[Any], timeout_s: float | None) -> Any:
    try:
        return future.result(timeout_s)
    except FutureTimeoutError:
        raise WaitTimeoutError(
            f"a block was not read within {timeout_s} s (readBufferPopTimeout); the storage may be slow or "
            f"hang. Set a longer limit, or none"
        ) from None
