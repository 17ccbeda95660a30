"""Which job a checkpoint is of: all that its results depend on, in words that a message can show.

A checkpoint of another job must never be resumed, so nothing may be left out that can change a result; how
many workers there are, where they run and what is shown of the progress cannot.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any

from applier.associations import FilenameAssociations
from applier.controls import ApplierControls
from applier.ports import Plan
from computemanager.fingerprint import fingerprint
from computemanager.journal import Identity, Journal

__all__ = ["identity_of", "open_checkpoint"]

_PACKAGES = ("computemanager", "numpy", "rasterio")
# Statistics and overviews, which other programs add to a file that they only look at. What GDAL takes from
# them that matters (projection, nodata) is in the plan.
_IDLE_SIDECARS = (".aux.xml", ".ovr")


def open_checkpoint(
    plan: Plan,
    function: Any,
    infiles: FilenameAssociations,
    outfiles: FilenameAssociations,
    other_args: Any,
    controls: ApplierControls,
) -> contextlib.AbstractContextManager[Journal | None]:
    """Open the job's checkpoint, if the controls ask for one.

    Parameters
    ----------
    plan : Plan
    function, infiles, outfiles, other_args, controls
        The arguments of `applier.apply`.

    Returns
    -------
    context manager
        Of the `computemanager.journal.Journal`, None without a checkpoint.

    Raises
    ------
    computemanager.errors.CheckpointError
        If the directory cannot be used, or holds the checkpoint of another job.
    """
    directory = controls.run.checkpoint
    if directory is None:
        return contextlib.nullcontext()
    return Journal.open(directory, identity_of(plan, function, infiles, outfiles, other_args, controls))


def identity_of(
    plan: Plan,
    function: Any,
    infiles: FilenameAssociations,
    outfiles: FilenameAssociations,
    other_args: Any,
    controls: ApplierControls,
) -> Identity:
    """Return the parts that a job's results depend on.

    Parameters
    ----------
    plan : Plan
    function, infiles, outfiles, other_args, controls
        The arguments of `applier.apply`.

    Raises
    ------
    computemanager.errors.CheckpointError
        If the function or `other_args` has something in it that is another in every process.
    """
    parts: dict[str, dict[str, str]] = {
        "versions": {"Python": platform.python_version(), **_versions()},
        "function": {
            "name": str(getattr(function, "__name__", None) or type(function).__name__),
            "digest of its code and all it uses": fingerprint(function),
        },
        "otherArgs": {"digest of its values": fingerprint(other_args)},
        "grid": _options(plan.working_grid),
        "controls": _options(controls.grid),
        "blocks": {
            "number": str(len(plan.source)),
            "first": plan.describe(plan.source.block(0)) if len(plan.source) else "none",
            "digest of how they are read": fingerprint(plan.source),
        },
    }
    for name, seq, path in infiles:
        options = _options(controls.read_options(name))
        parts[_label("infiles", name, seq, path)] = {**_facts(path), **options}
        for other in _read_along(path):
            parts[f"{os.path.basename(other)}, which is a part of {os.path.basename(path)}"] = _facts(other)
    for name, seq, path in outfiles:
        parts[_label("outfiles", name, seq, path)] = {
            "file": os.path.abspath(path),
            **_options(controls.output_options(name)),
        }
    return parts


def _label(kind: str, name: str, seq: int | None, path: str) -> str:
    return f"{kind}.{name}{'' if seq is None else f'[{seq}]'} ({os.path.basename(path)})"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _options(group: Any) -> dict[str, str]:
    """The fields of a dataclass as text; none of None."""
    return {} if group is None else {each.name: str(getattr(group, each.name)) for each in fields(group)}


def _facts(path: str) -> dict[str, str]:
    """What shows that a file has changed, without reading it."""
    try:
        status = os.stat(path)
    except OSError:  # no local file: an address of the web, a part of a file
        return {"file": path}
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    modified = datetime.fromtimestamp(seconds, timezone.utc)
    return {
        "file": os.path.abspath(path),
        "size": f"{status.st_size:,} bytes",
        "modified": f"{modified:%Y-%m-%d %H:%M:%S}.{nanoseconds:09d} UTC",
    }


def _read_along(path: str) -> Iterator[str]:
    """Other files that the pixels of a raster come from, such as those that a VRT puts together."""
    from applier.raster.datasets import open_dataset

    for other in sorted(set(open_dataset(path).files)):
        if not other.endswith(_IDLE_SIDECARS) and os.path.realpath(other) != os.path.realpath(path):
            yield other
