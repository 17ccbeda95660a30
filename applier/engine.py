"""`apply`: plan a job, run it, write its outputs, say how it went."""

from __future__ import annotations

import contextlib
import inspect
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from applier.associations import BlockAssociations, FilenameAssociations
from applier.checkpoint import open_checkpoint
from applier.controls import ApplierControls
from applier.errors import ApplierError, CancelledError, ControlsError
from applier.ports import BlockResult, Plan
from applier.progress import ProgressReporter
from applier.readahead import read_blocks
from applier.report import MAX_TRACEBACKS, ApplierReturn, SkippedBlock, skipped_warning
from applier.timers import Timers
from computemanager.base import ComputeWorkerManager, known_kinds, manager_class
from computemanager.errors import BlockError, BlockTimeoutError, PoisonBlockError, SettingsError
from computemanager.model import Job, Outcome, Settings
from computemanager.signals import terminated_as_exception

if TYPE_CHECKING:
    from applier.options import RunOptions
    from computemanager.journal import Journal

__all__ = ["apply", "run_block"]

WINDOW_BYTES = 192 * 1024 * 1024
"""About how much memory results may take that wait for an earlier block; what is beyond waits on disk."""

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
        runs that block alone. Where blocks are skipped (`ApplierControls.setOnBlockError`): if that would be
        all of them.
    PoisonBlockError, BlockTimeoutError
        If a block ended its worker process, or took longer than the ``blockTimeout`` of the style.
    ApplierError
        If the files, the controls or what the function made cannot be used; see `applier.errors`.
    computemanager.errors.ComputeManagerError
        If workers cannot be started or the function cannot be sent to them.

    Warns
    -----
    BlocksSkippedWarning
        If blocks were skipped.

    Notes
    -----
    An output appears under its own name only when all outputs are complete. Whatever the concurrency style,
    the files are the same to the byte.
    """
    controls = ApplierControls() if controls is None else controls
    _check_arguments(userFunction, infiles, outfiles, otherArgs, controls)
    timings = Timers()
    started = time.perf_counter()
    with terminated_as_exception(), contextlib.ExitStack() as stack:
        from applier.raster.planning import plan_rasters

        plan = plan_rasters(userFunction, infiles, outfiles, controls)
        style = controls.run.concurrency
        if style.computeWorkerKind not in known_kinds():
            raise SettingsError(
                f"computeWorkerKind={style.computeWorkerKind} is not available in this version; "
                f"the kinds that are: {', '.join(known_kinds())}"
            )
        manager = manager_class(style.computeWorkerKind)(_settings(controls.run, plan))
        name = controls.run.job_name or _name_of(userFunction)
        journal = stack.enter_context(
            open_checkpoint(plan, userFunction, infiles, outfiles, otherArgs, controls)
        )
        try:
            with plan.environment():
                skipped = _run(plan, Job(plan.task, otherArgs, name), manager, controls, timings, journal)
            states = manager.states()
        except (BlockError, PoisonBlockError, BlockTimeoutError) as error:
            raise _explained(error, plan, name) from error.__cause__
        else:
            if skipped and len(skipped) == len(plan.source):
                raise _none_computed(skipped[0], plan, name)
            with timings.interval("closing"):
                for sink in plan.sinks:
                    sink.finish()
                for sink in plan.sinks:
                    sink.commit()
        finally:
            for sink in plan.sinks:
                sink.abort()
        if journal is not None:
            journal.discard()
    timings.add("walltime", time.perf_counter() - started)
    statistics = manager.statistics
    kept = 0 if journal is None else len(journal.kept)
    timings.add("startup", statistics.first_outcome_s)
    if skipped:
        warnings.warn(skipped_warning(skipped, len(plan.source)), stacklevel=2)
    return ApplierReturn(
        timings=timings,
        otherArgsList=states,
        workinggrid=plan.working_grid,
        workers=statistics.workers if style.numComputeWorkers else 0,
        blocks=statistics.blocks + kept,
        retries=statistics.retries,
        blocksKept=kept,
        outputs=[sink.path for sink in plan.sinks],
        skippedBlocks=skipped,
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
    plan: Plan,
    job: Job,
    manager: ComputeWorkerManager,
    controls: ApplierControls,
    timings: Timers,
    journal: Journal | None,
) -> list[SkippedBlock]:
    """Run the plan's blocks and write what comes back; the blocks that were skipped."""
    style = controls.run.concurrency
    skipped: list[SkippedBlock] = []
    kept: Collection[int] = () if journal is None else journal.kept
    in_caller = style.computeWorkerKind == "CW_NONE" and style.numReadWorkers == 0
    blocks: Any = plan.source
    with contextlib.ExitStack() as stack:
        if not (style.workers_read or in_caller):
            blocks = stack.enter_context(
                contextlib.closing(
                    read_blocks(plan.source, style.numReadWorkers, style.readBufferPopTimeout, kept)
                )
            )
        reporter = stack.enter_context(ProgressReporter(controls.run.progress))
        reporter.start(len(plan.source), controls.run.job_name or "")
        if kept:
            reporter.advance(len(kept))
        run = stack.enter_context(contextlib.closing(manager.run(job, blocks, journal=journal)))
        for outcome in _timed(run, timings) if style.numComputeWorkers else run:
            is_kept = outcome.block_index in kept
            if outcome.skipped is None:
                _write(plan, outcome.value, timings, is_kept)
            else:
                # The plan's own: the outcome's may carry what main has read of it.
                block = plan.source.block(outcome.block_index)
                has_traceback = len(skipped) < MAX_TRACEBACKS
                skipped.append(
                    SkippedBlock.of(outcome.skipped, plan.describe(block), has_traceback=has_traceback)
                )
                for sink in plan.sinks:
                    sink.skip(block)
            del outcome  # its arrays may be in shared memory that is wanted again
            reporter.advance(0 if is_kept else 1)
            if reporter.cancelled:
                raise CancelledError("cancelled by the user; no output was written")
    return skipped


def _write(plan: Plan, result: BlockResult, timings: Timers, is_kept: bool) -> None:
    if not is_kept:  # that took its time in another run
        timings.add("reading", result.read_s)
        timings.add("userfunction", result.function_s)
    if plan.sinks:
        if not is_kept:
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


def _settings(options: RunOptions, plan: Plan) -> Settings:
    style = options.concurrency
    workers = max(1, style.numComputeWorkers)
    return Settings(
        num_workers=workers,
        window_bytes=WINDOW_BYTES,
        spill_directory=options.tempdir,
        worker_environment=plan.worker_environment(workers),
        start_timeout_s=style.computeBarrierTimeout,
        outcome_timeout_s=style.computeBufferPopTimeout,
        block_timeout_s=style.blockTimeout,
        max_raises_per_block=style.maxBlockRaises,
        max_kills_per_block=style.maxBlockKills,
        max_timeouts_per_block=style.maxBlockTimeouts,
        max_losses_per_block=style.maxBlockLosses,
        on_error=options.on_block_error,
        speculate=style.speculation,
        grace_s=style.graceTime,
        min_workers=style.minComputeWorkers,
        max_runtime_s=style.maxRuntime,
        extra_params=style.computeWorkerExtraParams or {},
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


def _explained(error: BlockError | PoisonBlockError | BlockTimeoutError, plan: Plan, name: str) -> Exception:
    """The error with the place of its block and what to do, in the words of the user's own script."""
    block = plan.source.block(error.block_index)
    where = plan.describe(block)
    alone = _how_to_run_alone(name, error.block_index)
    if isinstance(error, PoisonBlockError):
        return PoisonBlockError(
            f"{name} ended its worker process {error.attempts} times on {where}. The last time "
            f"{error.evidence}\nIf memory ran out: smaller blocks (controls.setWindowSize) or fewer "
            f"workers.\n{alone}",
            block_index=error.block_index,
            attempts=error.attempts,
            evidence=error.evidence,
        )
    if isinstance(error, BlockTimeoutError):
        times = f", {error.attempts} times" if error.attempts > 1 else ""
        return BlockTimeoutError(
            f"{name} took longer than {error.limit_s} s (blockTimeout){times}, on {where}. Set a longer "
            f"limit, or none, if blocks may take that long; make blocks smaller (controls.setWindowSize); or "
            f"go on without such blocks (controls.setOnBlockError('skip')).\n{alone}",
            block_index=error.block_index,
            attempts=error.attempts,
            limit_s=error.limit_s,
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


def _none_computed(first: SkippedBlock, plan: Plan, name: str) -> BlockError:
    """What ends a job that was to go on without blocks that cannot be computed, and had no other."""
    traceback = f"\n\nThe worker's traceback:\n{first.traceback}" if first.traceback else "\n"
    return BlockError(
        f"{name}: none of the {len(plan.source)} blocks could be computed, so no output was written "
        f"(setOnBlockError('skip') goes on only where there is something to go on with). The first, in "
        f"{first.worker}, was {first}{traceback}\n{_how_to_run_alone(name, first.block)}",
        original=RuntimeError(first.reason),
        worker_traceback=first.traceback,
        block_index=first.block,
        block=plan.source.block(first.block),
        worker=first.worker,
    )


def _how_to_run_alone(name: str, block: int) -> str:
    return (
        f"To run this block alone, in this process, under a debugger:\n"
        f"    applier.run_block({name}, infiles, outfiles, otherArgs, controls, block={block})"
    )
