"""A training run for the tests of processes: killed, preempted, joined with others.

``python worker.py FOLDER --steps N [--fatal SIGNAL STEP] [--plain]
[--processes N INDEX PORT]``
trains with checkpoints in FOLDER; the first process writes ``FOLDER/final.npz`` at the
end. With ``--fatal`` it sends itself the signal after that step. Images are shifted at
random, which depends on the number of processes, but not with ``--plain``.
"""

import argparse
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd import Network, combine, distill, methods, models
from jaxkd.data import Source, batches
from jaxkd.data.transforms import PadCrop
from jaxkd.evaluation.classification import evaluator
from jaxkd.training import Checkpoints, JsonLines, MeshShape, fit, make_mesh


class Student(nnx.Module):
    """With BatchNorm and dropout, so that a lost average or key shows."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(16, 64, rngs=rngs)
        self.second = nnx.Linear(64, 256, rngs=rngs)
        self.norm = nnx.BatchNorm(256, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(256, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.second(nnx.relu(self.first(x.reshape(len(x), -1)))))
        return self.head(self.dropout(nnx.relu(x)))


class Fatal:
    """A metric writer that sends a signal to its own process, and then dawdles.

    Joined processes tell each other of a signal in the background, which takes about a
    second; a real step takes long enough.
    """

    def __init__(self, number: signal.Signals, step: int):
        self.number, self.step = number, step

    def start(self, step):
        pass

    def write(self, step, metrics):
        if step == self.step:
            os.kill(os.getpid(), self.number)
        if step >= self.step:
            time.sleep(0.5)


def run(folder: Path, steps: int, writers=(), mesh=None, augment=True):
    """Train on random images, checkpointing every five steps; return the state."""
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(24, 4, 4, 1)).astype("f4"),
        "label": rng.integers(0, 3, 24).astype("i4"),
    }
    source = Source("toy", arrays, 3)
    data = batches(
        source,
        8,
        epochs=100,
        transform=PadCrop(1) if augment else None,
    )
    # Wide enough that no process of several holds all of it.
    teacher = models.mlp(16, (1024,), 3)
    teacher = teacher.with_variables(jax.jit(teacher.init)(jax.random.key(5)))
    student = Network.from_nnx(Student).astype(jnp.float64)
    evaluate = evaluator(student, source, batch_size=10)
    program = distill(
        student,
        teacher.astype(jnp.float64),
        combine((0.5, methods.cross_entropy()), (0.5, methods.kd())),
        optax.adam(1e-2),
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, _ = fit(
            program,
            data,
            key=jax.random.key(0),
            steps=steps,
            mesh=mesh,
            checkpoints=checkpoints,
            checkpoint_every=5,
            log_every=1,
            evaluate=evaluate,
            writers=[JsonLines(folder / "metrics.jsonl"), *writers],
        )
    return state


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--fatal", nargs=2)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--processes", type=int, nargs=3)
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    mesh = None
    if given.processes:
        count, index, port = given.processes
        jax.distributed.initialize(
            f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=10
        )
        mesh = make_mesh(MeshShape(data=-1, fsdp=2))
    writers = []
    if given.fatal:
        writers = [Fatal(signal.Signals[given.fatal[0]], int(given.fatal[1]))]
    state = run(given.folder, given.steps, writers, mesh, augment=not given.plain)
    state = state.replace(key=jax.random.key_data(state.key))
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        state = jax.jit(lambda x: x, out_shardings=everywhere)(state)
    if jax.process_index() == 0:
        leaves, _ = jax.tree_util.tree_flatten_with_path(state)
        found = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        np.savez(given.folder / "final.npz", **found)


if __name__ == "__main__":
    main()
