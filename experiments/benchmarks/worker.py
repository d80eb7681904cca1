"""How a benchmark's process answers: built once, then timed a few steps at a time.

Only the standard library, since each framework runs in an environment of its own; and
Linux only, whose kernel can be asked for the peak of some steps.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


def serve(build: Callable[[str, str], Callable[[int], None]]) -> None:
    """Build the step that the arguments name, and time it whenever asked.

    For every line with a number of steps it prints ``{"seconds": a step's, "peak_mib":
    the steps' memory beyond what the imports took}``.

    Args:
        build: ``(case, kind) -> run``, and ``run(steps)`` returns when they are done.
    """
    imported = _mib("VmRSS")
    run = build(*sys.argv[1:3])
    run(2)
    # The allocator keeps what compiling used; give it back, and start the peak anew.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        started = time.perf_counter()
        run(steps)
        seconds = (time.perf_counter() - started) / steps
        peak = _mib("VmHWM") - imported
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), flush=True)


def _mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(found.split()[1]) / 1024
