"""Measure the enhanced head on the teacher's features and on the student's own.

python -m experiments.prockd.gap
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.prockd.experiment import NAMES, TABLES, _enlarged, load, programs
from jaxkd import selection, training
from jaxkd.adapters import abstract_module, merge_module
from jaxkd.evaluation.classification import accuracy
from jaxkd.papers.prockd import PrototypeModule
from jaxkd.papers.prockd.program import feature_tokens
from jaxkd.reporting.run import Run

SEEDS = 5


def measure(setting: str, folder: Path) -> np.ndarray:
    """Return accuracies of `prockd`: (seeds, training and test images, heads)."""
    table = TABLES[setting]
    found = load(table, Run(folder), setting)
    train: Any = found.images.train
    test: Any = found.images.test
    test = _enlarged(test) if table.weights else test
    student, teacher = found.student, found.teacher
    tail = student.segment(start=table.tap)

    def accuracies(state: Any, source: Any) -> list[float]:
        batch = jax.tree.map(jnp.asarray, source.take(np.arange(len(source))))
        plain = student.apply(state.student, batch["image"], taps=(table.tap,))[0]
        own = plain.features[table.tap]
        seen = teacher.apply(
            state.teacher, teacher.read(batch, "teacher"), taps=table.teacher_taps
        )[0].features
        layers = [feature_tokens(seen[tap], own) for tap in table.teacher_taps]
        sizes = [x.shape[-1] for x in layers], table.width, table.prototypes
        abstract = abstract_module(lambda: PrototypeModule(*sizes, rngs=nnx.Rngs(0)))
        parts = state.method
        module: Any = merge_module(abstract, parts["params"], parts["state"])
        logits = [plain.logits]
        for tokens in (module(layers), feature_tokens(own, own)):
            x = module.augmentation(tokens).reshape(own.shape)
            logits.append(tail.apply(state.student, x)[0].logits)
        return [float(accuracy(x, batch["label"])) for x in logits]

    values = []
    for seed in range(SEEDS):
        rows, _ = selection.initial_pool(train.arrays["label"], table.shots, seed)
        arrays = {name: array[rows] for name, array in train.arrays.items()}
        few = replace(found.images, train=replace(train, arrays=arrays))
        optimizer = few.optimizer.build(few.steps, few.epochs)
        program = programs(table, student, teacher, optimizer)["prockd"]
        key = jax.random.key(seed)
        state, _ = training.fit(program, few.batches(seed), key=key)
        values.append([accuracies(state, source) for source in (few.train, test)])
    return 100 * np.array(values)


if __name__ == "__main__":
    print("| teacher | images | plain | teacher's features | own features |")
    print("| --- | --- | ---: | ---: | ---: |")
    for setting in NAMES[:2]:
        with TemporaryDirectory() as folder:
            found = measure(setting, Path(folder))
        errors = found.std(0, ddof=1) / np.sqrt(SEEDS)
        for images, means, error in zip(
            ("training", "test"), found.mean(0), errors, strict=True
        ):
            cells = [f"{m:.1f} ± {e:.1f}" for m, e in zip(means, error, strict=True)]
            print(f"| {setting} | {images} | {' | '.join(cells)} |")
