"""The scheduler and the window on a clock of their own, with workers that exist on paper only.

A simulation draws a job and a bad day from a seed: hosts that start late, die, are cut off and come back,
slots that end in the middle of a block, blocks that raise, kill or never end, answers that come twice or too
late, a caller that takes its time. After every step it looks whether the promises still hold: each block
counts exactly once, in order, within the window; nobody is idle while blocks wait; nothing is tried more
often than allowed; the job ends.

What happens depends on the seed alone, and a seed that fails can be run again, step by step::

    computemanager simulate --seed 17 --trace
"""

from computemanager.simulate.audit import Audit, Violation
from computemanager.simulate.command import main
from computemanager.simulate.report import Report
from computemanager.simulate.scenario import Scenario
from computemanager.simulate.simulation import Simulation

__all__ = ["Audit", "Report", "Scenario", "Simulation", "Violation", "main"]
