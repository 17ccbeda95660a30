"""`apply`: plan a job, run it, write its outputs, say how it went."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from applier.associations import BlockAssociations, FilenameAssociations
from applier.controls import ApplierControls
from applier.errors import ApplierError, CancelledError, ControlsError
from applier.ports import BlockResult, Plan
from applier.progress import ProgressReporter
from applier.readahead import read_blocks
from applier.report import ApplierReturn
from applier.timers import Timers
from computemanager.base import ComputeWorkerManager, known_kinds, manager_class
from computemanager.errors import BlockError, PoisonBlockError, SettingsError
from computemanager.model import Job, Outcome, Settings
from computemanager.signals import terminated_as_exception

if TYPE_CHECKING:
    from applier.concurrency import ConcurrencyStyle

__all__ = ["apply", "run_block"]

WINDOW_BYTES = 192 * 1024 * 1024
"""About how much memory the blocks between plan and output may take."""

UserFunction = Callable[..., None]


def apply(
    userFunction: UserFunction,
    infiles: FilenameAssociations,
    outfiles: FilenameAssociations,
    otherArgs: Any = None,
    controls: ApplierControls | None = None,
) -> ApplierReturn:
    """Apply a function to rasters, block by block, and write what it makes.

    Parameters
    ----------
    userFunction : callable
        Called for every block as ``userFunction(info, inputs, outputs)``, or with `otherArgs` as a fourth
        argument where that is given. `info` is a `ReaderInfo`; ``inputs.NAME`` an array of shape
        (bands, rows, cols), or a list of such arrays; for every NAME on `outfiles` it sets
        ``outputs.NAME`` to such an array. It must not depend on the order of the blocks.
    infiles, outfiles : FilenameAssociations
        Names and files.
    otherArgs : object, optional
        Anything else the function needs, usually `OtherInputs`. Each worker has a copy of its own, which the
        function may change; they come back as ``otherArgsList``.
    controls : ApplierControls, optional
        Everything that may be set; by default nothing is.

    Returns
    -------
    ApplierReturn
        Timings, the copies of `otherArgs`, the working grid, the files written.

    Raises
    ------
    BlockError
        If the function raised; the original exception is its ``__cause__``, and the message has the line that
        runs that block alone.
    ApplierError
        If the files, the controls or what the function made cannot be used; see `applier.errors`.
    computemanager.errors.ComputeManagerError
        If workers cannot be started or the function cannot be sent to them.

    Notes
    -----
    An output appears under its own name only when all outputs are complete. Whatever the concurrency style,
    the files are the same to the byte.
    """
    controls = ApplierControls() if controls is None else controls
    _check_arguments(userFunction, infiles, outfiles, otherArgs, controls)
    timings = Timers()
    started = time.perf_counter()
    with terminated_as_exception():
        from applier.raster.planning import plan_rasters

        plan = plan_rasters(userFunction, infiles, outfiles, controls)
        style = controls.run.concurrency
        if style.computeWorkerKind not in known_kinds():
            raise SettingsError(
                f"computeWorkerKind={style.computeWorkerKind} is not available in this version; "
                f"the kinds that are: {', '.join(known_kinds())}"
            )
        manager = manager_class(style.computeWorkerKind)(_settings(style, plan))
        name = controls.run.job_name or _name_of(userFunction)
        try:
            with plan.environment():
                _run(plan, Job(plan.task, otherArgs, name), manager, controls, timings)
            with timings.interval("closing"):
                for sink in plan.sinks:
                    sink.finish()
                for sink in plan.sinks:
                    sink.commit()
        except (BlockError, PoisonBlockError) as error:
            raise _explained(error, plan, name) from error.__cause__
        finally:
            for sink in plan.sinks:
                sink.abort()
    timings.add("walltime", time.perf_counter() - started)
    statistics = manager.statistics
    timings.add("startup", statistics.first_outcome_s)
    return ApplierReturn(
        timings=timings,
        otherArgsList=manager.states(),
        workinggrid=plan.working_grid,
        workers=statistics.workers if style.numComputeWorkers else 0,
        blocks=statistics.blocks,
        retries=statistics.retries,
        outputs=[sink.path for sink in plan.sinks],
    )


def run_block(
    userFunction: UserFunction,
    infiles: FilenameAssociations,
    outfiles: FilenameAssociations,
    otherArgs: Any = None,
    controls: ApplierControls | None = None,
    *,
    block: int,
) -> BlockAssociations:
    """Run the function on one block alone, in this process, to look into it with a debugger.

    Nothing is caught and no file is written.

    Parameters
    ----------
    userFunction, infiles, outfiles, otherArgs, controls
        As for `apply`.
    block : int
        The number of the block, from 0, as error messages give it.

    Returns
    -------
    BlockAssociations
        The outputs as the function left them.
    """
    controls = ApplierControls() if controls is None else controls
    _check_arguments(userFunction, infiles, outfiles, otherArgs, controls)
    from applier.raster.planning import plan_rasters

    plan = plan_rasters(userFunction, infiles, outfiles, controls)
    if not 0 <= block < len(plan.source):
        raise ControlsError(f"block={block}: the job has blocks 0 to {len(plan.source) - 1}")
    arguments = () if otherArgs is None else (otherArgs,)
    return plan.task.outputs_of(plan.source.block(block), *arguments)


def _run(
    plan: Plan, job: Job, manager: ComputeWorkerManager, controls: ApplierControls, timings: Timers
) -> None:
    """Run the plan's blocks and write what comes back."""
    style = controls.run.concurrency
    in_caller = style.computeWorkerKind == "CW_NONE" and style.numReadWorkers == 0
    blocks: Any = plan.source
    with contextlib.ExitStack() as stack:
        if not (style.workers_read or in_caller):
            blocks = stack.enter_context(
                contextlib.closing(read_blocks(plan.source, style.numReadWorkers, style.readBufferPopTimeout))
            )
        reporter = stack.enter_context(ProgressReporter(controls.run.progress))
        reporter.start(len(plan.source), controls.run.job_name or "")
        run = stack.enter_context(contextlib.closing(manager.run(job, blocks)))
        for outcome in _timed(run, timings) if style.numComputeWorkers else run:
            _write(plan, outcome.value, timings)
            del outcome  # its arrays may be in shared memory that is wanted again
            reporter.advance()
            if reporter.cancelled:
                raise CancelledError("cancelled by the user; no output was written")


def _write(plan: Plan, result: BlockResult, timings: Timers) -> None:
    timings.add("reading", result.read_s)
    timings.add("userfunction", result.function_s)
    if plan.sinks:
        timings.add("encoding", result.encode_s)
        started = time.perf_counter()
        for sink, encoded in zip(plan.sinks, result.encoded, strict=True):
            sink.write(encoded)
        timings.add("writing", time.perf_counter() - started)


def _timed(run: Iterator[Outcome], timings: Timers) -> Iterator[Outcome]:
    """A run's outcomes; the time until each is there counts as waiting for workers."""
    while True:
        started = time.perf_counter()
        outcome = next(run, None)
        if outcome is None:
            return
        timings.add("waiting", time.perf_counter() - started)
        yield outcome
        del outcome


def _settings(style: ConcurrencyStyle, plan: Plan) -> Settings:
    workers = max(1, style.numComputeWorkers)
    window = max(2 * workers + 2, min(1024, WINDOW_BYTES // max(1, plan.block_bytes)))
    return Settings(
        num_workers=workers,
        window_blocks=window,
        worker_environment=plan.worker_environment(workers),
        start_timeout_s=style.computeBarrierTimeout,
        outcome_timeout_s=style.computeBufferPopTimeout,
    )


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _check_arguments(function: Any, infiles: Any, outfiles: Any, other_args: Any, controls: Any) -> None:
    """The arguments of `apply`, before anything is opened."""
    if not callable(function):
        raise ControlsError(
            f"userFunction is {function!r}, which cannot be called. Give the function itself, without (): "
            f"applier.apply(myFunction, infiles, outfiles)"
        )
    for name, value in (("infiles", infiles), ("outfiles", outfiles)):
        if not isinstance(value, FilenameAssociations):
            raise ControlsError(
                f"{name} is a {type(value).__name__}; make it with {name} = applier.FilenameAssociations(), "
                f"then {name}.image = 'file.tif'"
            )
    if not isinstance(controls, ApplierControls):
        raise ControlsError(
            f"controls is a {type(controls).__name__}; make it with controls = applier.ApplierControls()"
        )
    arguments = 3 if other_args is None else 4
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable made in C
        return
    try:
        signature.bind(*range(arguments))
    except TypeError:
        wanted = "(info, inputs, outputs)" if other_args is None else "(info, inputs, outputs, otherArgs)"
        why = "Without otherArgs" if other_args is None else "With otherArgs"
        raise ControlsError(
            f"{_name_of(function)}{signature} does not take {arguments} arguments. {why}, the function is "
            f"called as {_name_of(function)}{wanted}"
        ) from None


def _explained(error: BlockError | PoisonBlockError, plan: Plan, name: str) -> Exception:
    """The error with the place of its block and what to do, in the words of the user's own script."""
    block = plan.source.block(error.block_index)
    where = plan.describe(block)
    alone = (
        f"To run this block alone, in this process, under a debugger:\n"
        f"    applier.run_block({name}, infiles, outfiles, otherArgs, controls, block={error.block_index})"
    )
    if isinstance(error, PoisonBlockError):
        return PoisonBlockError(
            f"{name} ended its worker process {error.attempts} times on {where}. The last time "
            f"{error.evidence}\nIf memory ran out: smaller blocks (controls.setWindowSize) or fewer "
            f"workers.\n{alone}",
            block_index=error.block_index,
            attempts=error.attempts,
            evidence=error.evidence,
        )
    original = error.original
    if isinstance(original, ApplierError):
        # Our own finding about the block's data, not the user's exception: no traceback helps with that.
        return type(original)(f"{original} ({where})")
    return BlockError(
        f"{name} raised {type(original).__name__} on {where}, in {error.worker}: {original}\n\n"
        f"The worker's traceback:\n{error.worker_traceback}\n{alone}",
        original=original,
        worker_traceback=error.worker_traceback,
        block_index=error.block_index,
        block=block,
        worker=error.worker,
    )
