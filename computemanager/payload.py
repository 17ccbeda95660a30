"""Pickles: the job once a worker, blocks and values all the time.

The job is pickled by value as far as it is the user's own: what is defined in ``__main__``, in a notebook
cell, as a lambda or closure (cloudpickle does that), and modules that lie beside the script, which a worker
elsewhere could not import. Blocks and values use the plain pickle, which is quicker, with large buffers taken
out of it.
"""

from __future__ import annotations

import functools
import os
import pickle
import site
import sys
import sysconfig
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from computemanager.errors import PayloadError
from computemanager.model import Job
from computemanager.sharedmem import MIN_BUFFER_BYTES, SlabReader, SlabWriter
from computemanager.wire import NO_SLAB, BufferPlace

__all__ = ["LargePayloadWarning", "Packed", "dumps_any", "dumps_job", "pack", "unpack"]

OUT_OF_BAND_BYTES = 16 * 1024
"""Smaller buffers stay in the pickle."""

LARGE_JOB_BYTES = 16 * 1024 * 1024
"""A job whose function weighs more gets a warning that names what it drags along."""

_ALIGNMENT = 8

_BESIDE_LOCK = threading.Lock()


class LargePayloadWarning(UserWarning):
    """The function carries much data along, which is sent to every worker."""


class Packed(NamedTuple):
    """A pickle, the places of the buffers taken out of it, and those buffers that have no slab."""

    payload: bytes
    places: list[BufferPlace]
    buffers: list[Any]


class _OutOfBand:
    """The large buffers taken out of one pickle."""

    def __init__(self, slabs: SlabWriter | None) -> None:
        self.places: list[BufferPlace] = []
        self.buffers: list[Any] = []
        self._slabs = slabs

    def place(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out (False), or leave it in the pickle (True)."""
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        is_large = raw.nbytes >= MIN_BUFFER_BYTES
        slab = self._slabs.put(raw) if self._slabs is not None and is_large else None
        self.places.append(BufferPlace(slab or NO_SLAB, raw.nbytes))
        if slab is None:
            self.buffers.append(raw)
        return False

    def undo(self) -> None:
        """The pickle came to nothing."""
        for slab, _ in self.places:
            if slab != NO_SLAB and self._slabs is not None:
                self._slabs.free(slab)
        self.places.clear()
        self.buffers.clear()


def pack(value: Any, slabs: SlabWriter | None) -> Packed:
    """Pickle a value with its large buffers out of band, in slabs where there are any.

    Raises
    ------
    PayloadError
        If it cannot be pickled.
    """
    outside = _OutOfBand(slabs)
    try:
        pickled = pickle.dumps(value, 5, buffer_callback=outside.place)
    except Exception as plain:
        outside.undo()
        try:
            pickled = cloudpickle.dumps(value, 5, buffer_callback=outside.place)
        except Exception as error:
            outside.undo()
            raise _cannot_pickle(value, error) from plain
    return Packed(pickled, outside.places, outside.buffers)


def unpack(
    payload: Any, places: Sequence[BufferPlace], buffers: Sequence[Any], slabs: SlabReader | None
) -> Any:
    """The value that `pack` packed. Its arrays are as writable as they were.

    Buffers in slabs become views of them; others stay in the memory of the message they came in.
    """
    if not places:
        return pickle.loads(payload)
    inline = iter(buffers)
    found: list[Any] = []
    for slab, length in places:
        if slab == NO_SLAB:
            found.append(_usable(next(inline)))
        elif slabs is None:
            raise PayloadError("a message refers to shared memory, which is not in use")
        else:
            found.append(slabs.view(slab, length))
    return pickle.loads(payload, buffers=found)


def _usable(buffer: Any) -> Any:
    """A buffer of a message as memory for an array: itself, unless it is read-only or oddly aligned."""
    view = memoryview(buffer)
    if view.readonly or np.frombuffer(view, np.uint8).ctypes.data % _ALIGNMENT:
        return bytearray(view)
    return buffer


def dumps_any(value: Any) -> bytes:
    """Pickle a value; also one of a class that only cloudpickle can take along."""
    try:
        return pickle.dumps(value, 5)
    except Exception as plain:
        try:
            return cloudpickle.dumps(value, 5)  # type: ignore[no-any-return]
        except Exception as error:
            raise _cannot_pickle(value, error) from plain


def _cannot_pickle(value: Any, error: Exception) -> PayloadError:
    return PayloadError(f"a {type(value).__name__} cannot be pickled: {error}")


def dumps_job(job: Job) -> bytes:
    """Pickle a job for workers that share nothing with this process but installed packages.

    Raises
    ------
    PayloadError
        If it cannot be pickled; the message names the variable that is to blame.

    Warns
    -----
    LargePayloadWarning
        If the function drags a lot of data along; the message names the variables.
    """
    with _modules_beside_script_by_value():
        function, function_error = _try_dumps(job.function)
        state, state_error = _try_dumps(job.state)
    if function_error is not None:
        # A module beside the script may hold what cannot travel (a lock, an open file) and still be
        # importable where the worker runs.
        function, still = _try_dumps(job.function)
        if still is not None:
            raise PayloadError(_not_picklable(job, job.function, function_error)) from function_error
    if state_error is not None:
        raise PayloadError(_not_picklable(job, job.state, state_error)) from state_error
    if len(function) > LARGE_JOB_BYTES:
        warnings.warn(_too_large(job, len(function)), LargePayloadWarning, stacklevel=2)
    return pickle.dumps((function, state, job.name), 5)


def _try_dumps(value: Any) -> tuple[bytes, Exception | None]:
    try:
        return cloudpickle.dumps(value, 5), None
    except Exception as error:
        return b"", error


def loads_job(data: Any) -> tuple[Job, bytes]:
    """The job that `dumps_job` pickled, and its state as it was pickled."""
    function, state, name = pickle.loads(data)
    return Job(pickle.loads(function), pickle.loads(state), name), state


# -- modules beside the script -------------------------------------------------------------------------


def _installed_places() -> list[str]:
    """Directories of installed packages and of Python itself."""
    places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    places += (
        [*site.getsitepackages(), site.getusersitepackages()] if hasattr(site, "getsitepackages") else []
    )
    places.append(str(Path(__file__).parent))  # ours, also in a checkout that is not installed
    return [os.path.realpath(place) + os.sep for place in places if place]


def modules_beside_script() -> list[types.ModuleType]:
    """Loaded modules whose source lies in the folder of the running script, or below.

    In a notebook or an interactive session that folder is the current directory.
    """
    main_file = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = os.path.dirname(os.path.realpath(main_file)) if main_file else os.getcwd()
    folder = os.path.realpath(folder) + os.sep
    installed = _installed_places()
    if any(folder.startswith(place) for place in installed):
        return []  # the script is an installed program, such as a test runner
    ours = {__name__.partition(".")[0], "applier", "__main__"}
    found = []
    real = functools.lru_cache(maxsize=None)(os.path.realpath)  # few folders hold many modules
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or name.partition(".")[0] in ours:
            continue
        path = os.path.join(real(os.path.dirname(file)), "")
        if path.startswith(folder) and not any(path.startswith(place) for place in installed):
            found.append(module)
    return found


@contextmanager
def _modules_beside_script_by_value() -> Iterator[None]:
    """Within, cloudpickle takes the user's own modules along. Its registry is global: one at a time."""
    with _BESIDE_LOCK:
        already = cloudpickle.list_registry_pickle_by_value()
        modules = [module for module in modules_beside_script() if module.__name__ not in already]
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in modules:
                cloudpickle.unregister_pickle_by_value(module)


# -- what is to blame ----------------------------------------------------------------------------------


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value takes along when it is pickled, each with words that name it."""
    if isinstance(value, types.MethodType):
        yield "object of the method", value.__self__
        value = value.__func__
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f"captured variable '{name}'", cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f"global variable '{name}'", value.__globals__[name]
        defaults = value.__defaults__ or ()
        names = value.__code__.co_varnames[: value.__code__.co_argcount]
        for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
            yield f"default of argument '{name}'", default
    elif hasattr(value, "func") and hasattr(value, "args") and hasattr(value, "keywords"):
        yield "function of the partial", value.func
        yield from ((f"argument {i} of the partial", each) for i, each in enumerate(value.args))
        yield from ((f"argument '{name}' of the partial", each) for name, each in value.keywords.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"item {i}", each) for i, each in enumerate(value[:1000]))
    elif isinstance(value, dict):
        yield from ((f"item {name!r}", each) for name, each in list(value.items())[:1000])
    elif not isinstance(value, (type, types.ModuleType)) and hasattr(value, "__dict__"):
        yield from ((f"attribute '{name}'", each) for name, each in vars(value).items())


def _size(value: Any) -> int | None:
    """Bytes of its pickle, or None if it has none."""
    try:
        return len(cloudpickle.dumps(value, 5))
    except Exception:
        return None


def _blame(value: Any, is_guilty: Callable[[Any], bool], depth: int = 0) -> list[str]:
    """The shortest way from a value to the smallest part that is guilty: names, outermost first."""
    if depth < 8:
        for name, part in _parts(value):
            if is_guilty(part):
                return [f"{name} ({type(part).__name__})", *_blame(part, is_guilty, depth + 1)]
    return []


def _not_picklable(job: Job, value: Any, error: Exception) -> str:
    way = _blame(value, lambda part: _size(part) is None)
    where = " -> ".join(way) if way else f"a {type(value).__name__}"
    return (
        f"{job.name} cannot be sent to worker processes, because something in it cannot be pickled: {where}. "
        f"Python says: {error}. Make that object inside the function (open the file, take the lock, connect "
        f"there), or use a kind of worker that runs in this process (CW_THREADS, CW_NONE)."
    )


def _too_large(job: Job, nbytes: int) -> str:
    way = _blame(job.function, lambda part: (_size(part) or 0) > nbytes // 2)
    where = f"; most of it is {' -> '.join(way)}" if way else ""
    return (
        f"{job.name} drags {nbytes / 1e6:.1f} MB along to every worker{where}. Load it inside the function "
        f"from a file, or give it as an input, if the start takes too long."
    )
