"""The contract, kept by agents over TCP on this machine."""

from __future__ import annotations

from typing import Any

import pytest

from computemanager.model import Settings
from computemanager.testing import ManagerContract


class TestAgents(ManagerContract):
    """Two agents with a slot each."""

    kind = "CW_AGENTS"


class TestOneAgentWithManySlots(ManagerContract):
    """One agent that holds all the slots."""

    kind = "CW_AGENTS"

    def settings(self, **changes: Any) -> Settings:
        slots = changes.pop("num_workers", 2)
        return Settings(**{"num_workers": 1, "extra_params": {"slots": slots}, **changes})

    @pytest.mark.parametrize("shared_memory", [False])
    @pytest.mark.parametrize("nbytes", [20_000, 9_000_000])
    def test_arrays_go_there_and_back(self, nbytes: int, shared_memory: bool) -> None:
        """Also those that travel in several pieces."""
        super().test_arrays_go_there_and_back(nbytes, shared_memory)
