"""CAST: from dense to 2:4 sparse by training that never leaves the dense model.

Huang et al. 2025 (arXiv:2509.25996) let an Adam with an adaptive L1 pull shrink the
weights that a 2:4 mask drops, while learnt scales and the dense model as the teacher
hold up what they are for. They report Llama 2 7B at +0.09 perplexity.

``small`` prunes a Llama of six layers that writes Shakespeare character by character,
``paper`` is Llama 2 7B with 7.9 billion tokens.
"""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.cast.arms import Arm, arms, make_arms
from experiments.cast.claims import CLAIMS as CLAIMS
from experiments.cast.config import PRESETS as PRESETS
from experiments.cast.config import SCOPE, Config
from experiments.common.text import language_records, load_text, train_on_text
from jaxkd import data, distill
from jaxkd.compression.prune.sparsity import masked_magnitude_ratio, nm_masks, prune
from jaxkd.compression.quantise.mixed_bits import quantize_layers
from jaxkd.compression.sparse_training import finalize
from jaxkd.evaluation.language import token_evaluator
from jaxkd.interop import load_pretrained
from jaxkd.methods import cross_entropy
from jaxkd.network import Network
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Program, Variables

SLICE = "v5e:16x16"
MESH = "v5e-256"

PAPER = {"llama2-7b/cast": {"perplexity": 5.58}}


def dense_model(
    run: Run, config: Config, network: Network, fit: Callable[..., Any]
) -> Variables:
    """Return the dense model's variables: those of a folder, or trained by ``fit``."""
    if config.weights:
        folder = data.data_file(f"{config.weights}/config.json").parent
        return load_pretrained(folder)[1]
    steps = config.teacher_steps
    rate = optax.cosine_decay_schedule(config.teacher_learning_rate, steps)
    program = distill(network, None, cross_entropy(), optax.adamw(rate))
    state, _ = fit(
        program, steps=steps, seed=0, folder=run.folder / "teacher", name="teacher"
    )
    return state.student


def sparse_metrics(
    arm: Arm, network: Network, test: data.Examples
) -> Callable[[Variables], dict[str, float]]:
    """Return ``the student's variables -> metrics`` of the pruned network.

    ``int8_cost`` and ``int4_cost`` are the nats a token that rounding what is left
    costs, with one scale an output.

    Args:
        arm: whose student it is.
        network: that is deployed.
        test: the text to evaluate on.
    """
    deployed, before = (token_evaluator(n, test) for n in (network, arm.student))
    ids = {"input_ids": jnp.asarray(test.take(np.arange(4))["input_ids"])}

    @jax.jit
    def disagreement(variables: Variables, folded: Variables) -> jax.Array:
        """Return how far the pruned student is from the deployed network."""
        params = variables["params"]
        pruned = {**variables, "params": prune(params, nm_masks(params, SCOPE))}
        found = arm.student.apply(pruned, ids)[0].logits
        return jnp.abs(found - network.apply(folded, ids)[0].logits).max()

    def measure(variables: Variables) -> dict[str, float]:
        params = variables["params"]
        folded, report = finalize(params, SCOPE)
        after = deployed({"params": folded, "stats": {}})
        dense = before(variables)["nll"]
        rounded = {
            f"{kind}_cost": deployed(
                {"params": quantize_layers(folded, [(SCOPE, kind)]), "stats": {}}
            )["nll"]
            - after["nll"]
            for kind in ("int8", "int4")
        }
        metrics = {
            **after,
            **rounded,
            "dense_nll": dense,
            "pruning_gap": after["nll"] - dense,
            "magnitude_ratio": float(
                masked_magnitude_ratio(params, nm_masks(params, SCOPE))
            ),
            "exact_groups": report.exact / report.groups,
        }
        if "scales" in params:
            smallest = min(
                float(jnp.abs(s).min()) for s in jax.tree.leaves(params["scales"])
            )
            metrics["smallest_scale"] = smallest
            folded = {"params": folded, "stats": {}}
            metrics["fold_error"] = float(disagreement(variables, folded))
        return metrics

    return measure


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the dense model, and sparse ones from it by every method."""
    train, test = load_text(
        config.text, config.length, config.vocabulary, config.test_windows
    )
    network = config.network(train.classes)
    started = time.perf_counter()
    fit = functools.partial(
        train_on_text, run, train=train, batch_size=config.batch_size, mesh=MESH
    )
    variables = dense_model(run, config, network, fit)
    seconds = time.perf_counter() - started
    records = run.part(
        "dense model",
        lambda folder: language_records(
            config.setting,
            "teacher",
            0,
            [token_evaluator(network, test)(variables)],
            seconds,
        ),
    )
    for name, arm in make_arms(config, network, variables).items():
        measure = sparse_metrics(arm, network, test)

        def train_one(seed: int, folder: Path, name=name, arm=arm, measure=measure):
            started = time.perf_counter()
            history: list[dict[str, Any]] = [{}]
            if arm.program is None:
                history = [measure(arm.student.init(jax.random.key(seed)))]
            else:
                _, history = fit(
                    arm.program,
                    steps=arm.steps,
                    seed=seed,
                    folder=folder,
                    name=f"{name} seed {seed}",
                    evaluate=lambda state: measure(state.student),
                )
            seconds = time.perf_counter() - started
            return language_records(config.setting, name, seed, history, seconds)

        # Without training there is nothing random.
        for seed in seeds if arm.program else seeds[:1]:
            records += run.part(
                f"{name}/seed{seed}",
                lambda folder, seed=seed, one=train_one: one(seed, folder),
            )
    return records


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the program of CAST, whose teacher is in the dtype it computes in."""
    network = config.network(config.vocabulary)
    makers = arms(
        config,
        network,
        start=lambda network: network,
        pruned=lambda network: network,
        teacher=network.astype(config.compute),
    )
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
    program = makers["cast"]().program
    assert program is not None
    return {"cast": (program, {"input_ids": tokens, "label": tokens})}
