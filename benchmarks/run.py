"""Run all benchmarks: ``python benchmarks/run.py``, or some: ``python benchmarks/run.py functions arrays``.

Each prints ratios measured within one run; see `harness`. Peers that are not installed are left out, with a
line that says so: ``python -m pip install '.[raster,bench]'`` brings them.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys

ALL = (
    "functions",
    "light_function",
    "checkpoint",
    "blocks_per_second",
    "arrays",
    "tcp",
    "thousand_agents",
    "straggler",
    "scheduler_scale",
    "memory",
)

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(ALL)
    unknown = [name for name in chosen if name not in ALL]
    if unknown:
        sys.exit(f"no benchmark is named {unknown[0]!r}; there are: {', '.join(ALL)}")
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, {platform.machine()}")
    for name in chosen:
        importlib.import_module(name).main()
