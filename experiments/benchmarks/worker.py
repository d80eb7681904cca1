"""How a benchmark's process answers: built once, then timed a few steps at a time.

Only the standard library, since each framework runs in an environment of its own.
"""

import json
import resource
import sys
import time
from collections.abc import Callable


def serve(build: Callable[[str, str], Callable[[int], None]]) -> None:
    """Build the step that the arguments name, and time it whenever asked.

    For every line with a number of steps it prints ``{"seconds": a step's, "peak_mib":
    memory beyond what the imports took}``.

    Args:
        build: ``(case, kind) -> run``, and ``run(steps)`` returns when they are done.
    """
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = build(*sys.argv[1:3])
    run(2)
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        started = time.perf_counter()
        run(steps)
        seconds = (time.perf_counter() - started) / steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported
        print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024}), flush=True)
