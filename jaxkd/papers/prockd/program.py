"""ProC-KD's training, and the student with its enhanced head."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.adapters import NO_EDITS, abstract_module, merge_module, split_module
from jaxkd.arguments import checked, count
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import as_float, check_same_shape, frozen, weighted_loss
from jaxkd.losses.divergences import cross_entropy_loss, kd_loss
from jaxkd.losses.pooling import adaptive_average_pool
from jaxkd.methods.base import example_weights, summed
from jaxkd.methods.masks import finite_where_masked
from jaxkd.network import Network, axes_of
from jaxkd.papers.prockd.prototypes import PrototypeAugmentation, PrototypeModule
from jaxkd.programs.distill import (
    advanced,
    carry_of,
    check_taps,
    check_training,
    frozen_teacher,
    initial,
    learn,
    parts_of,
    teach,
)
from jaxkd.programs.update import Keys, Player, descend
from jaxkd.types import Batch, Loss, Method, Metrics, Program, TrainState, Variables


@checked()
def prockd(
    student: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
    *,
    tap: str,
    teacher_taps: Sequence[str],
    prototypes: int = 72,
    augmented_weight: float = 1.0,
    consistency: float = 1.0,
    feature_weight: float = 0.0,
    own_weight: float = 0.0,
    accumulate: int = 1,
) -> Program:
    """Return the program that trains a student by prototypes of a teacher's features.

    Li et al. 2022, arXiv:2212.13180. Teacher and student may know other classes: no
    logits of the teacher are read. Its features, by a `PrototypeModule`, take the place
    of the student's at a tap, and the student's own layers after it classify them; that
    head learns the labels too, and the student follows it, see `prockd_loss`. Teacher
    and prototypes are not needed to use the student; `enhanced` keeps the prototypes.

    Args:
        student: a network that can be cut at ``tap``.
        teacher: of any classes, frozen.
        optimizer: of the student and the module, as `jaxkd.distill` takes it.
        tap: the student's tokens (batch, tokens, width) before its last norm and head,
            or its last map (batch, height, width, channels).
        teacher_taps: layers to fuse; larger maps are pooled to the student's.
        prototypes: K, the authors' 72.
        augmented_weight: of `prockd_loss`.
        consistency: likewise.
        feature_weight: likewise.
        own_weight: of the labels' cross-entropy on the student's own enhanced features,
            which `enhanced` has where it is used; without it they are never trained.
        accumulate: as in `jaxkd.distill`.

    Returns:
        A program whose state is a `TrainState`; the module's weights are its method's
        params. Its metrics are ``loss``, ``grad_norm`` and the parts of the loss.

    Raises:
        ValueError: a tap that a network lacks, or that the student cannot be cut at;
            from ``init``, teacher's tokens that are not as many as the student's.
    """
    if tap not in student.cuts:
        raise ValueError(unknown_name("student cut", tap, student.cuts))
    tail = student.segment(start=tap)

    def build(own: Array, features: Sequence[Array], rngs: nnx.Rngs) -> PrototypeModule:
        widths = [x.shape[-1] for x in features]
        return PrototypeModule(widths, own.shape[-1], prototypes, rngs=rngs)

    def begin(key, outputs, taught, batch):
        own = outputs.features[tap]
        seen = [feature_tokens(taught.features[t], own) for t in teacher_taps]
        params, state = split_module(build(own, seen, nnx.Rngs(key)))
        return {"params": params, "state": state}

    def unused(*_: Any) -> Any:
        raise NotImplementedError("prockd's loss needs the student's layers too")

    # It says what is read, and how the module begins.
    method = Method(begin, unused, (tap,), tuple(teacher_taps))
    check_taps(student, teacher, method)
    player = Player(("student", "method"), optimizer)

    def objective(params: Any, carry: Any, batch: Batch, keys: Keys, step: Any):
        taught = teach(teacher, method, params["teacher"], batch)
        variables = {"params": params["student"], "stats": carry["student"]}
        outputs, changed = learn(student, method, variables, batch, keys)
        outputs, clean, batch = finite_where_masked(outputs, taught, batch)
        assert clean is not None
        own = outputs.features[tap]
        seen = [feature_tokens(clean.features[t], own) for t in teacher_taps]
        abstract = abstract_module(lambda: build(own, seen, nnx.Rngs(0)))
        module: Any = merge_module(abstract, params["method"], carry["method"])
        represented = module(seen)

        def head(tokens: Array) -> Array:
            x = module.augmentation(tokens).reshape(own.shape).astype(own.dtype)
            key = keys.augmented
            return tail.apply(variables, x, train=True, key=key)[0].logits

        weights = example_weights(batch, outputs)
        terms = prockd_terms(
            outputs.logits,
            head(represented),
            batch["label"],
            feature_tokens(own, own),
            represented,
            weights=weights,
        )
        factors = [1.0, augmented_weight, consistency, feature_weight]
        if own_weight:
            values = cross_entropy_loss(head(feature_tokens(own, own)), batch["label"])
            terms["own_ce"] = weighted_loss(values, weights)
            factors.append(own_weight)
        loss = summed(*zip(factors, terms.values(), strict=True))
        held = {"student": changed["stats"], "method": carry["method"]}
        return loss, (held, {"prockd": loss, **terms})

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        state = initial(Keys(key), batch, student, teacher, method)
        return dataclasses.replace(state, opt_state=player.init(parts_of(state)))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = Keys(state.key).at(state.step)
        found = descend(
            player,
            state.opt_state,
            objective,
            parts_of(state),
            carry_of(state),
            batch,
            keys,
            state.step,
            accumulate=accumulate,
        )
        state = advanced(state, method, found.params, found.carry)
        return dataclasses.replace(state, opt_state=found.opt_state), found.metrics

    def check(state: TrainState, batch: Batch) -> None:
        check_training(state.classes, batch, student, teacher)

    return Program(init, step, frozen_teacher, axes_of(student, teacher), check)


@checked()
def prockd_loss(
    logits: Float[Array, "batch classes"],
    augmented_logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    features: Float[Array, "batch tokens width"],
    represented: Float[Array, "batch tokens width"],
    *,
    augmented_weight: float = 1.0,
    consistency: float = 1.0,
    feature_weight: float = 0.0,
    weights: Float[Array, "batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return CE + λ_a·CE_aug + λ_c·KL(aug ‖ plain) + λ_f·MSE of normalised features.

    Li et al. 2022, arXiv:2212.13180, name the parts; their code trains by the first
    alone, so that the sum is ours. The augmented head gets no gradient from the KL, nor
    the representation from the features' distance.

    Args:
        logits: of the student as it is.
        augmented_logits: of its head on the teacher's enhanced representation.
        labels: class indices.
        features: the student's tokens.
        represented: U, the teacher's.
        augmented_weight: λ_a.
        consistency: λ_c.
        feature_weight: λ_f.
        weights: one an example.

    Returns:
        The loss, and its parts ``ce``, ``augmented_ce``, ``consistency`` and
        ``features``.

    Raises:
        ValueError: shapes differ.
    """
    terms = prockd_terms(
        logits, augmented_logits, labels, features, represented, weights=weights
    )
    parts = {name: term.value for name, term in terms.items()}
    factors = (1.0, augmented_weight, consistency, feature_weight)
    total = sum(f * x for f, x in zip(factors, parts.values(), strict=True))
    return jnp.asarray(total), parts


@checked()
def prockd_terms(
    logits: Float[Array, "batch classes"],
    augmented_logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    features: Float[Array, "batch tokens width"],
    represented: Float[Array, "batch tokens width"],
    *,
    weights: Float[Array, "batch"] | None = None,
) -> dict[str, Loss]:
    """Return the parts of `prockd_loss`, each a sum and what it is divided by.

    Args:
        logits: as of `prockd_loss`.
        augmented_logits: likewise.
        labels: likewise.
        features: likewise.
        represented: likewise.
        weights: likewise.

    Raises:
        ValueError: as `prockd_loss`.
    """
    check_same_shape(logits, augmented_logits, "logits")
    check_same_shape(features, represented, "features")
    apart = _normalized(as_float(features)) - _normalized(frozen(represented))
    values = {
        "ce": cross_entropy_loss(logits, labels),
        "augmented_ce": cross_entropy_loss(augmented_logits, labels),
        "consistency": kd_loss(logits, augmented_logits, 1.0),
        "features": jnp.square(apart).mean((1, 2)),
    }
    return {name: weighted_loss(value, weights) for name, value in values.items()}


@checked(prototypes=count)
def enhanced(student: Network, tap: str, width: int, prototypes: int = 72) -> Network:
    """Return the student with its features enhanced by the prototypes it has learnt.

    The teacher is not needed. Its variables are those of `enhanced_variables`.

    Args:
        student: as it was trained by `prockd`.
        tap: likewise.
        width: of the tokens, or channels of the map.
        prototypes: as given to `prockd`.

    Raises:
        ValueError: no such tap.
    """
    if tap not in student.taps:
        raise ValueError(unknown_name("tap", tap, student.taps))

    def build(rngs: nnx.Rngs) -> PrototypeAugmentation:
        return PrototypeAugmentation(width, prototypes, rngs=rngs)

    abstract = abstract_module(lambda: build(nnx.Rngs(0)))

    def init(key):
        own, other = jax.random.split(key)
        variables = student.init(own)
        params, _ = split_module(build(nnx.Rngs(other)))
        params = {"student": variables["params"], "augmentation": params}
        return {"params": params, "stats": variables["stats"]}

    def apply(variables, inputs, *, edits=NO_EDITS, **kwargs):
        params = variables["params"]
        module: Any = merge_module(abstract, params["augmentation"], {})

        def augment(x: Array) -> Array:
            x = edits[tap](x) if tap in edits else x
            return module(feature_tokens(x, x)).reshape(x.shape).astype(x.dtype)

        outputs, changed = student.apply(
            {"params": params["student"], "stats": variables["stats"]},
            inputs,
            edits={**edits, tap: augment},
            **kwargs,
        )
        return outputs, {**variables, "stats": changed["stats"]}

    return Network(init, apply, student.taps, student.reads, axes=student.axes)


@checked()
def enhanced_variables(state: TrainState) -> Variables:
    """Return the variables of `enhanced` out of a state of `prockd`'s program."""
    own = state.student
    learnt = state.method["params"]["augmentation"]
    return {
        "params": {"student": own["params"], "augmentation": learnt},
        "stats": own["stats"],
    }


@checked()
def feature_tokens(
    x: Float[Array, "batch ..."], like: Float[Array, "batch ..."]
) -> Float[Array, "batch tokens width"]:
    """Return tokens; a map's places are tokens, as many as another map has.

    Args:
        x: tokens, or maps, which are pooled to the others' size.
        like: the student's tokens or maps.

    Raises:
        ValueError: tokens that are not as many as the other's.
    """
    if x.ndim == 4:
        if like.ndim == 4 and x.shape[1:3] != like.shape[1:3]:
            x = adaptive_average_pool(x, (like.shape[1], like.shape[2]))
        x = x.reshape(len(x), -1, x.shape[-1])
    wanted = like.shape[1] * like.shape[2] if like.ndim == 4 else like.shape[1]
    if x.ndim != 3 or x.shape[1] != wanted:
        raise ValueError(
            f"teacher_taps has features of shape {x.shape}, but the student's are "
            f"{like.shape}: tap layers of as many tokens, or maps of both networks"
        )
    return x


def _normalized(x: Array) -> Array:
    """Return tokens with mean 0 and deviation 1 over their width."""
    return jax.nn.standardize(x, epsilon=1e-6)
