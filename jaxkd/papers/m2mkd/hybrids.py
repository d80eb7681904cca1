"""Modules in a row as one network, and one by one in a frozen meta model."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxkd.adapters import NO_EDITS, Edits
from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.network import Network
from jaxkd.types import Inputs, Outputs, Variables

PARTS = ("params", "stats")


@checked()
def hybrids(
    meta: Sequence[Network],
    modules: Mapping[int, Network],
    meta_variables: Sequence[Variables] | None = None,
) -> Network:
    """Return the meta model with each module in its stage's place, as one network.

    The taps ``0.logits``, ``1.logits``, … are those of the hybrid with the module of
    that stage, and the logits are the hybrids' mean. The meta model is frozen: it is in
    the ``stats``, and runs as in evaluation. What its stages before a module say is
    computed once for all; after it, all hybrids go through a stage together, as one
    large batch. Gradients pass through it to the modules. Lo et al. 2024,
    arXiv:2402.16918.

    Args:
        meta: its stages, from `split_modules`.
        modules: by stage, any of them; each takes what its stage takes.
        meta_variables: of each stage, trained; None for random ones.

    Raises:
        ValueError: no modules, a stage that the meta model does not have, or other
            numbers of stages and variables.
    """
    if meta_variables is not None and len(meta) != len(meta_variables):
        raise ValueError(
            f"meta has {len(meta)} stages but meta_variables {len(meta_variables)}: "
            "give the variables of each"
        )
    stages = sorted(modules)
    if not stages or stages[0] < 0 or stages[-1] >= len(meta):
        raise ValueError(
            f"modules has the stages {stages}: name at least one of 0 to "
            f"{len(meta) - 1}, those of the meta model"
        )
    names = {i: f"{i}.logits" for i in stages}

    def init(key: PRNGKeyArray) -> Variables:
        made = {i: modules[i].init(jax.random.fold_in(key, i)) for i in stages}
        own = {part: {str(i): made[i][part] for i in stages} for part in PARTS}
        # Training donates its state, so it starts from a copy.
        own["stats"]["meta"] = {
            str(i): stage.init(jax.random.fold_in(key, len(meta) + i))
            if meta_variables is None
            else jax.tree.map(jnp.copy, meta_variables[i])
            for i, stage in enumerate(meta)
        }
        return own

    def apply(
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        edits: Edits = NO_EDITS,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        for tap in (*taps, *edits):
            if tap not in names.values() or tap in edits:
                raise ValueError(unknown_name("tap", tap, names.values()))
        stats, carried = dict(variables["stats"]), {}
        before: Any = inputs
        for i, stage in enumerate(meta):
            frozen = variables["stats"]["meta"][str(i)]
            carried = _together(stage, frozen, carried)
            if i in modules:
                own = {part: variables[part][str(i)] for part in PARTS}
                outputs, changed = modules[i].apply(
                    own,
                    before,
                    train=train,
                    key=None if key is None else jax.random.fold_in(key, i),
                )
                carried[i] = outputs.logits
                stats[str(i)] = changed["stats"]
            if i < stages[-1]:
                before = stage.apply(frozen, before)[0].logits
        features = {tap: x for i, x in carried.items() if (tap := names[i]) in taps}
        logits = jnp.stack(list(carried.values())).mean(0)
        return Outputs(logits, features), {**variables, "stats": stats}

    axes = {
        (str(i), *path): axes for i in stages for path, axes in modules[i].axes.items()
    }
    return Network(init, apply, tuple(names.values()), meta[0].reads, axes=axes)


def _together(
    stage: Network, variables: Variables, carried: dict[int, Array]
) -> dict[int, Array]:
    """Return what a stage makes of all hybrids' activations, in one batch."""
    if not carried:
        return {}
    ends = list(accumulate(len(x) for x in carried.values()))
    whole = jnp.concatenate(list(carried.values()))
    parts = jnp.split(stage.apply(variables, whole)[0].logits, ends[:-1])
    return dict(zip(carried, parts, strict=True))


@checked()
def chained(modules: Sequence[Network]) -> Network:
    """Return modules in a row as one network, with the stitches that they have.

    Args:
        modules: each takes what the one before returns; their variables are kept under
            ``"0"``, ``"1"``, ….

    Raises:
        ValueError: no modules.
    """
    if not modules:
        raise ValueError("modules is empty: a network needs at least one")

    def init(key: PRNGKeyArray) -> Variables:
        made = [m.init(jax.random.fold_in(key, i)) for i, m in enumerate(modules)]
        return {part: {str(i): v[part] for i, v in enumerate(made)} for part in PARTS}

    def apply(variables, inputs, *, taps=(), edits=NO_EDITS, train=False, key=None):
        if taps or edits:
            raise ValueError(unknown_name("tap", [*taps, *edits][0], []))
        x, stats = inputs, {}
        for i, module in enumerate(modules):
            own = {part: variables[part][str(i)] for part in PARTS}
            part_key = None if key is None else jax.random.fold_in(key, i)
            outputs, changed = module.apply(own, x, train=train, key=part_key)
            x, stats[str(i)] = outputs.logits, changed["stats"]
        return Outputs(x, {}), {**variables, "stats": stats}

    return Network(init, apply, (), modules[0].reads)
