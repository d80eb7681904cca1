"""CAST: from dense to 2:4 sparse by training that never leaves the dense model.

Huang et al. 2025 (arXiv:2509.25996) let an Adam with an adaptive L1 pull shrink the
weights that a 2:4 mask drops, while learnt scales and the dense model as the teacher
hold up what they are for. They report Llama 2 7B at +0.09 perplexity.

``small`` prunes a Llama of six layers that writes Shakespeare character by character,
``paper`` is Llama 2 7B with 7.9 billion tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.cast.claims import CLAIMS
from experiments.cast.config import PRESETS, SCOPE, Config, decayed, trained_for
from experiments.common.configs import choose
from experiments.common.corpus import read
from jaxkd import data, distill
from jaxkd.compression.prune.sparsity import masked_magnitude_ratio, nm_masks, prune
from jaxkd.compression.quantise.mixed_bits import quantize_layers
from jaxkd.compression.sparse_training import finalize, scaled, straight_through
from jaxkd.evaluation.language import token_evaluator
from jaxkd.methods import combine, cross_entropy, kd
from jaxkd.network import Network
from jaxkd.papers.cast.optimizers import adams, ast_adam, keep_zeros
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.paper import PaperValue
from jaxkd.reporting.run import Arm, History, Run, Task
from jaxkd.types import Batch, Program, Variables

Row = tuple[Network, Program | None, int]
"""The network in training, what trains it (None: it is only pruned), and the steps."""


def rows(
    config: Config,
    network: Network,
    dense: Network,
    pruned: Network,
    teacher: Network,
) -> dict[str, Callable[[], Row]]:
    """Return what makes each method, by name.

    Args:
        config: the experiment's.
        network: the language model, with no weights.
        dense: with the dense model's.
        pruned: with those, pruned by their magnitudes.
        teacher: the dense model, frozen.
    """
    rate, ramp = config.rate(), config.share()

    def learn(
        student: Network,
        optimizer: optax.GradientTransformation,
        eta: float = config.eta,
    ) -> Row:
        objective = combine((1 - eta, cross_entropy()), (eta, kd(1.0)))
        if config.clip:
            optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
        return student, distill(student, teacher, objective, optimizer), config.steps

    def cast(
        decay: float = config.decay,
        share: optax.Schedule = ramp,
        scales: bool = True,
        eta: float = config.eta,
    ) -> Row:
        student = scaled(dense, SCOPE, config.groups) if scales else dense
        optimizer = adams(rate, decay, share, SCOPE, mask_every=config.mask_every)
        return learn(student, optimizer, eta)

    def planned(steps: int) -> Callable[[], Row]:
        changed = replace(config, steps=steps, budgets=())
        return rows(changed, network, dense, pruned, teacher)["cast"]

    ast_decay = optax.linear_schedule(0.0, config.ast_decay, config.steps // 4)
    return {
        "one_shot": lambda: (dense, None, 0),
        "fixed_mask": lambda: learn(
            pruned, optax.chain(optax.adam(rate), keep_zeros(SCOPE))
        ),
        "sr_ste": lambda: learn(
            straight_through(dense, SCOPE, config.sr_ste_decay), optax.adam(rate)
        ),
        "ast": lambda: learn(
            straight_through(dense, SCOPE, mask_every=config.mask_every),
            ast_adam(rate, ast_decay, SCOPE, mask_every=config.mask_every),
        ),
        "cast": cast,
        "cast_no_scales": lambda: cast(scales=False),
        "cast_no_kd": lambda: cast(eta=0.0),
        # The ramp's mean from the first step on.
        "cast_no_ramp": lambda: cast(share=optax.constant_schedule(0.5)),
        "dense": lambda: learn(dense, optax.adam(rate)),
        **{decayed(decay): lambda x=decay: cast(decay=x) for decay in config.decays},
        **{trained_for(steps): planned(steps) for steps in config.budgets},
    }


def folded(variables: Variables) -> Variables:
    """Return the deployed network's variables: pruned, scales multiplied in."""
    return {"params": finalize(variables["params"], SCOPE)[0], "stats": {}}


def sparsity_metrics(
    student: Network, network: Network, test: data.Examples
) -> Callable[[Variables, float], dict[str, float]]:
    """Return ``(the student's variables, nll of the pruned network) -> metrics``.

    ``int8_cost`` and ``int4_cost`` are the nats a token that rounding what is left
    costs, with one scale an output.

    Args:
        student: the network in training.
        network: that is deployed.
        test: the text to evaluate on.
    """
    deployed, before = (token_evaluator(n, test) for n in (network, student))
    ids = {"input_ids": jnp.asarray(test.take(np.arange(4))["input_ids"])}

    @jax.jit
    def disagreement(variables: Variables, folded: Variables) -> jax.Array:
        """Return how far the pruned student is from the deployed network."""
        params = variables["params"]
        pruned = {**variables, "params": prune(params, nm_masks(params, SCOPE))}
        found = student.apply(pruned, ids)[0].logits
        return jnp.abs(found - network.apply(folded, ids)[0].logits).max()

    def measure(variables: Variables, nll: float) -> dict[str, float]:
        params = variables["params"]
        after, report = finalize(params, SCOPE)

        def cost(kind: str) -> float:
            rounded = quantize_layers(after, [(SCOPE, kind)])
            return deployed({"params": rounded, "stats": {}})["nll"] - nll

        dense = before(variables)["nll"]
        ratio = masked_magnitude_ratio(params, nm_masks(params, SCOPE))
        metrics = {
            **{f"{kind}_cost": cost(kind) for kind in ("int8", "int4")},
            "dense_nll": dense,
            "pruning_gap": nll - dense,
            "magnitude_ratio": float(ratio),
            "exact_groups": report.exact / report.groups,
        }
        if "scales" in params:
            scales = jax.tree.leaves(params["scales"])
            metrics["smallest_scale"] = min(float(jnp.abs(s).min()) for s in scales)
            found = disagreement(variables, {"params": after, "stats": {}})
            metrics["fold_error"] = float(found)
        return metrics

    return measure


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Return the dense model, trained or read, and sparse ones from it."""
    choose("method", config.rows, rows(config, *[config.network(8)] * 4))
    corpus = config.corpus.load()
    network = config.network(corpus.vocabulary)
    teacher = (
        read(network, config.weights)
        if config.weights
        else corpus.learn(run, network, config.teacher_optimizer, config.teacher_steps)
    )
    yield teacher, corpus.task(config.setting, config.steps)
    dense = teacher.deployed
    variables = dense.init(jax.random.key(0))
    magnitude = prune(variables["params"], nm_masks(variables["params"], SCOPE))
    pruned = network.with_variables({**variables, "params": magnitude})
    makers = rows(config, network, dense, pruned, dense)
    for name in config.rows:
        student, program, steps = makers[name]()
        metrics = sparsity_metrics(student, network, corpus.test)

        def measure(
            state: Any, history: History, metrics=metrics, trained=program is not None
        ) -> dict[str, float]:
            found = state.student if trained else variables
            return metrics(found, float(history[-1]["nll"]))

        task = corpus.task(config.setting, steps or config.steps)
        if program is None:
            deployed = network.with_variables(folded(variables))
            yield Arm(name, None, deployed, measure=measure), task
        else:
            after = lambda state: folded(state.student)  # noqa: E731
            yield Arm(name, program, network, after, measure), task


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the program of CAST, whose teacher is in the dtype it computes in."""
    network = config.network(config.corpus.vocabulary)
    teacher = network.astype(config.compute)
    _, program, _ = rows(config, network, network, network, teacher)["cast"]()
    assert program is not None
    return {"cast": (program, config.corpus.batch())}


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    paper={"llama2-7b/cast": {"perplexity": PaperValue(5.58, "Table III", True)}},
    full_scale=full_scale,
    topology="v5e:16x16",
    mesh="v5e-256",
)
