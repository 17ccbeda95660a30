"""The main script of a job on a network: started by `tests.chaos.test_farm_network` on the host main.

One argument: a JSON object, see `Order`. In the order's folder it leaves

============  ============================================================================================
``progress``  a byte for each outcome that was taken (of a raster: each call of the function)
``join``      what a worker that is started by hand needs in its environment, as JSON
``report``    at the end, as JSON: a digest of all values in order, or of the output file; the states
============  ============================================================================================

and blocks take no more time than they must once there is a file ``hurry``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from computemanager.base import ComputeWorkerManager, manager_class
from computemanager.model import Job, Settings
from computemanager.output import OutputPump
from computemanager.provider import Command, Provider, WorkerEnd
from computemanager.remote import AgentsManager

JOIN_VARIABLES = ("COMPUTEMANAGER_ADDRESS", "COMPUTEMANAGER_SERVER_KEY", "COMPUTEMANAGER_CLIENT_KEY")


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Parameters
    ----------
    folder : str
        Where the files are.
    kind : str
        ``"CW_NONE"``, or ``"CW_AGENTS"``.
    blocks : int
        How many.
    slow_every, slow_s : int, float
        Each so many-th block takes so long, the others next to nothing.
    large_every, large_bytes : int
        What the function returns for each so many-th block has so many bytes, for the others some dozen.
    raise_every : int
        On each so many-th block the function raises, the first time that it is tried. 0: on none.
    state : bool
        The job has a state that counts.
    agents, slots : int
        How many agents, and slots of each.
    most : int
        So many agents are ever started; others join by hand.
    grace_s : float
        Grace time.
    address : str
        Of main.
    prefixes : sequence of sequences of str
        Put before the commands of agents, in turn.
    raster : str
        Run `applier.apply` on this file instead, with tiles of 50 x 50 pixels; `slow_every`, `slow_s`,
        `agents`, `slots` and `grace_s` hold, and the state is otherArgs.
    """

    folder: str
    kind: str = "CW_AGENTS"
    blocks: int = 4000
    slow_every: int = 5
    slow_s: float = 0.04
    large_every: int = 200
    large_bytes: int = 3_000_000
    raise_every: int = 0
    state: bool = False
    agents: int = 3
    slots: int = 2
    most: int = 1000
    grace_s: float = 3.0
    address: str = ""
    prefixes: Sequence[Sequence[str]] = ()
    raster: str = ""


class Tally:
    """What a job's state counts. Sums of different powers: a block too many and another too few show."""

    def __init__(self) -> None:
        self.sums = [0, 0, 0]

    def add(self, block: int) -> None:
        """Count a block."""
        self.sums = [total + block**power for power, total in enumerate(self.sums)]


def make_function(order: Order) -> Callable[..., Any]:
    """Return the function that workers run; its values depend on the block alone."""
    hurry = os.path.join(order.folder, "hurry")

    def compute(block: int, state: Tally | None = None) -> Any:
        if state is not None:
            state.add(block)  # before anything can happen to this block
        if order.raise_every and block % order.raise_every == 3:
            with contextlib.suppress(FileExistsError):
                open(os.path.join(order.folder, f"raised-{block}"), "x").close()
                raise ValueError("the first time")
        if block % order.slow_every == 0 and not os.path.exists(hurry):
            time.sleep(order.slow_s)
        if block % order.large_every == 7:
            return np.arange(block, block + order.large_bytes // 8)
        return block, hashlib.sha256(str(block).encode()).hexdigest(), block / 7

    return compute


class Few:
    """A `Provider` that starts so many agents and no more; it notes how others can join."""

    def __init__(self, provider: Provider, most: int, note: Path) -> None:
        self._provider = provider
        self._left = most
        self._note = note

    def start(self, count: int, command: Command) -> Sequence[str]:
        details = {name: command.environment[name] for name in JOIN_VARIABLES}
        unfinished = self._note.with_suffix(".new")
        unfinished.write_text(json.dumps(details))
        unfinished.replace(self._note)
        number = min(count, self._left)
        self._left -= number
        return self._provider.start(number, command)

    def poll(self) -> Sequence[WorkerEnd]:
        return self._provider.poll()

    def kill(self, workers: Collection[str]) -> None:
        self._provider.kill(workers)

    def stop(self, ending: Collection[str] = (), grace_s: float = 0.0) -> None:
        self._provider.stop(ending, grace_s)


def extra_params(order: Order) -> dict[str, Any]:
    """Return the parameters of the kind."""
    return {"slots": order.slots, "address": order.address, "prefixes": order.prefixes}


def make_manager(order: Order) -> ComputeWorkerManager:
    """Return what runs the job."""
    if order.kind == "CW_NONE":
        return manager_class("CW_NONE")()

    class FewAgents(AgentsManager):
        def provider(self, output: OutputPump) -> Provider:
            return Few(super().provider(output), order.most, Path(order.folder) / "join")

    return FewAgents(
        Settings(
            num_workers=order.agents,
            grace_s=order.grace_s,
            max_raises_per_block=2,
            extra_params=extra_params(order),
        )
    )


def run(order: Order) -> dict[str, Any]:
    """Run the job; what is to be reported."""
    manager = make_manager(order)
    job = Job(make_function(order), Tally() if order.state else None, name="job on a network")
    digest = hashlib.sha256()
    workers = set()
    done = 0
    with open(Path(order.folder) / "progress", "wb", buffering=0) as progress:
        for outcome in manager.run(job, range(order.blocks)):
            assert outcome.block_index == done, (outcome.block_index, done)
            value = outcome.value
            # Not the pickle of an array: it says whether the array may be written to.
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
            workers.add(outcome.worker)
            done += 1
            progress.write(b".")
    states = [state.sums for state in manager.states()]
    return {
        "done": done,
        "digest": digest.hexdigest(),
        "sums": [sum(sums) for sums in zip(*states, strict=True)],
        "workers": sorted(workers),
        "statistics": dataclasses.asdict(manager.statistics),
    }


def run_raster(order: Order) -> dict[str, Any]:
    """Run `applier.apply`; what is to be reported."""
    import applier

    folder, slow_every, slow_s = order.folder, order.slow_every, order.slow_s

    def smooth(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
        with open(os.path.join(folder, "progress"), "ab", buffering=0) as progress:
            progress.write(b".")
        other.total += int(inputs.img.sum(dtype=np.int64))
        other.blocks += 1
        if other.blocks % slow_every == 0 and not os.path.exists(os.path.join(folder, "hurry")):
            time.sleep(slow_s)
        pixels = inputs.img.astype(np.float32)
        outputs.out = (pixels + np.roll(pixels, 1, axis=2)) / 2  # the margin takes what comes round

    infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
    infiles.img, outfiles.out = order.raster, os.path.join(folder, "out.tif")
    controls = applier.ApplierControls()
    controls.setWindowSize(50, 50)
    controls.setOverlap(1)
    controls.setProgress(None)
    if order.kind != "CW_NONE":
        style = applier.ConcurrencyStyle(
            numComputeWorkers=order.agents,
            computeWorkerKind=order.kind,
            computeWorkerExtraParams=extra_params(order),
            graceTime=order.grace_s,
        )
        controls.setConcurrencyStyle(style)
    other = applier.OtherInputs(total=0, blocks=0)
    returned = applier.apply(smooth, infiles, outfiles, other, controls=controls)
    copies = returned.otherArgsList
    return {
        "done": returned.blocks,
        "digest": hashlib.sha256(Path(outfiles.out).read_bytes()).hexdigest(),
        "sums": [sum(copy.blocks for copy in copies), sum(copy.total for copy in copies)],
    }


if __name__ == "__main__":
    given = Order(**json.loads(sys.argv[1]))
    report = json.dumps(run_raster(given) if given.raster else run(given))
    (Path(given.folder) / "report").write_text(report)
