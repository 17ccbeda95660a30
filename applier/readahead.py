"""Reading in the main process: when a block is asked for, or ahead of it in threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from applier.ports import BlockSource, ReadBlock
from computemanager.errors import WaitTimeoutError

__all__ = ["read_blocks"]


def read_blocks(
    source: BlockSource, read_workers: int, timeout_s: float | None = None
) -> Generator[ReadBlock, None, None]:
    """Yield every block with its content, in order.

    Parameters
    ----------
    source : BlockSource
        The blocks, and how to read them.
    read_workers : int
        Threads that read ahead, twice as many blocks as there are threads. With 0 a block is read when it
        is asked for.
    timeout_s : float, optional
        Give up when a block has not been read after so many seconds. Needs a thread.

    Raises
    ------
    WaitTimeoutError
        After `timeout_s`.
    """
    if read_workers == 0:
        for block in source:
            yield _read(source, block)
        return
    pool = ThreadPoolExecutor(read_workers, thread_name_prefix="applier-read")
    ahead: deque[Future[ReadBlock]] = deque()
    try:
        for block in source:
            ahead.append(pool.submit(_read, source, block))
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


def _result(future: Future[ReadBlock], timeout_s: float | None) -> ReadBlock:
    try:
        return future.result(timeout_s)
    except FutureTimeoutError:
        raise WaitTimeoutError(
            f"a block was not read within {timeout_s} s (readBufferPopTimeout); the storage may be slow or "
            f"hang. Set a longer limit, or none"
        ) from None
