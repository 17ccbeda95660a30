"""The scheduler, without any input or output: `machine` decides, `policy` judges."""

from computemanager.scheduler.actions import Accept, Action, Cause, Dispatch, GiveUp, StartWorkers
from computemanager.scheduler.events import (
    Answered,
    Event,
    Failed,
    PlanEnded,
    Planned,
    StartFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
    WorkerStarted,
)
from computemanager.scheduler.machine import Scheduler, SchedulerLimits

__all__ = [
    "Accept",
    "Action",
    "Answered",
    "Cause",
    "Dispatch",
    "Event",
    "Failed",
    "GiveUp",
    "PlanEnded",
    "Planned",
    "Scheduler",
    "SchedulerLimits",
    "StartFailed",
    "StartWorkers",
    "Tick",
    "WorkerJoined",
    "WorkerLost",
    "WorkerStarted",
]
