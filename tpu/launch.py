"""The command `jaxkd`, started once on every host of a slice or cluster.

``python tpu/launch.py run SLUG --preset paper --folder SHARED/RUN`` is `jaxkd run …`
after all processes have found one another, by what their launcher has set: the
metadata of a TPU VM, GKE's, or SLURM's variables. The folder is on a disk that all
share. Started again with the same arguments, it goes on with the run in that folder.
"""

import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def arguments(given: list[str]) -> list[str]:
    """Return `jaxkd`'s arguments: `resume` in place of `run` for a folder that exists.

    Raises:
        SystemExit: `run` without ``--folder``.
    """
    if given[:1] != ["run"]:
        return given
    if "--folder" not in given[:-1]:
        sys.exit("give --folder, a new folder on a disk that all hosts share")
    folder = given[given.index("--folder") + 1]
    started = (Path(folder) / "run.json").is_file()
    return ["resume", folder] if started else given


if __name__ == "__main__":
    from jaxkd.cli import main

    # Before anyone makes the folder, all have looked whether it was there.
    command = arguments(sys.argv[1:])
    jax.distributed.initialize()
    sys.exit(main(command))
