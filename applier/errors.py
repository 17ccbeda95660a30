"""Exceptions of the `applier` package; all inherit `computemanager.errors.ComputeManagerError`.

::

    ApplierError
    ├── ControlsError        a control, or an argument of apply(), that makes no sense
    ├── FileOpenError        an input that is missing or cannot be read, an output that cannot be written
    ├── GridMismatchError    inputs whose pixel grids do not fit together
    ├── OutputError          the user's function gave an output we cannot write
    ├── CancelledError       the progress object said that the user wants to stop
    └── MissingExtraError    an optional package is not installed
"""

from __future__ import annotations

import importlib
from types import ModuleType

from computemanager.errors import ComputeManagerError

__all__ = [
    "ApplierError",
    "CancelledError",
    "ControlsError",
    "FileOpenError",
    "GridMismatchError",
    "MissingExtraError",
    "OutputError",
    "require",
]


class ApplierError(ComputeManagerError):
    """Root of the exceptions that only `applier` raises."""


class ControlsError(ApplierError, ValueError):
    """A control, or an argument of `applier.apply`, that makes no sense."""


class FileOpenError(ApplierError, OSError):
    """An input that is missing or unreadable, or an output that cannot be written."""


class GridMismatchError(ApplierError, ValueError):
    """Inputs whose pixel grids do not fit together."""


class OutputError(ApplierError, ValueError):
    """The user's function left out an output, or gave one of a shape or type that cannot be written."""


class CancelledError(ApplierError, RuntimeError):
    """The progress object said that the user wants to stop (its ``wasCancelled``)."""


class MissingExtraError(ApplierError, ImportError):
    """A package that belongs to an optional extra is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of ours brings it.

    Parameters
    ----------
    module : str
        Dotted name of the module to import.
    extra : str
        The extra, as in ``pip install 'computemanager[EXTRA]'``.

    Returns
    -------
    module

    Raises
    ------
    MissingExtraError
        If the module, or one that it imports, is not installed.

    Examples
    --------
    >>> require("math", "raster").pi > 3
    True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here and cannot be imported ({error}). "
            f"Install it with:  python -m pip install 'computemanager[{extra}]'"
        ) from error
