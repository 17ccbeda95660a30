"""The scheduler, without any input or output.

::

    machine     events in, actions out
    dispatch    who gets what waits
    rescue      what idle workers do for others: copies, recalls
    policy      judgement: pure functions of figures
    books       all that is known, made of:
                backlog (what waits, what is finished), leases (what is lent), roster (hosts, workers),
                stragglers (who has been busy for long), trouble (what went wrong), pace (times)
"""

from computemanager.scheduler.actions import (
    Accept,
    Action,
    Cause,
    Dispatch,
    GiveUp,
    Recall,
    Skip,
    StartHosts,
)
from computemanager.scheduler.events import (
    Answered,
    Event,
    GaveBack,
    HostBack,
    HostDraining,
    HostEnded,
    HostSilent,
    HostStarted,
    PlanEnded,
    Planned,
    Raised,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from computemanager.scheduler.limits import SchedulerLimits
from computemanager.scheduler.machine import Scheduler

__all__ = [
    "Accept",
    "Action",
    "Answered",
    "Cause",
    "Dispatch",
    "Event",
    "GaveBack",
    "GiveUp",
    "HostBack",
    "HostDraining",
    "HostEnded",
    "HostSilent",
    "HostStarted",
    "PlanEnded",
    "Planned",
    "Raised",
    "Recall",
    "Scheduler",
    "SchedulerLimits",
    "Skip",
    "StartHosts",
    "Tick",
    "WorkerJoined",
    "WorkerLost",
]
