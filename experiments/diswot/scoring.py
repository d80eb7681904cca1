"""Scores of untrained students: the 64 ResNets of S1, and NAS-Bench-201's cells.

Each student has weights of its own, drawn from its position in the space, so that its
score does not depend on when a search comes to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from experiments.common.training import transforms
from experiments.diswot.config import Config
from jaxkd import data, search
from jaxkd.evaluation.cost import forward_cost, parameter_count
from jaxkd.losses import cross_entropy_loss
from jaxkd.models import cifar_resnet
from jaxkd.models.vision.nasbench201 import OPERATIONS
from jaxkd.network import Network
from jaxkd.papers import diswot
from jaxkd.papers.diswot.scores import MODES

CELLS = search.ChoiceSpace(tuple(range(len(OPERATIONS))), 6)
"""NAS-Bench-201: the operation on each edge of a cell."""

NOISE_FOLD, TEACHER_FOLD = 2**20, 2**20 + 1
"""Positions that no student has, for the draws of noise and teacher."""

Architecture = tuple[int, ...]
Initial = Literal["gaussian", "default"]


def depth_space(config: Config) -> search.ChoiceSpace:
    """Return S1: the blocks of each stage of a CIFAR ResNet."""
    return search.ChoiceSpace(config.choices, 3)


@cache
def distilled_accuracies() -> dict[Architecture, float]:
    """Return S1's accuracies on CIFAR-100 after distillation, as fractions.

    Dong et al. 2023 (arXiv:2303.15678) publish all 64, and those of plain training.
    """
    path = Path(__file__).parent / "s1_accuracies.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    return {
        tuple(map(int, blocks)): float(accuracy) / 100
        for *blocks, _, accuracy in table.tolist()
    }


@dataclass(frozen=True)
class Images:
    """What networks of a data set take and give.

    Attributes:
        side: pixels.
        channels: of an image.
        classes: logits.
    """

    side: int
    channels: int
    classes: int

    @classmethod
    def of(cls, dataset: data.Dataset) -> "Images":
        """Return those of a data set of square images."""
        _, side, _, channels = dataset.train.take(np.arange(1))["image"].shape
        return cls(side, channels, dataset.train.classes)


def scoring_batch(
    dataset: data.Dataset, size: int, seed: int, noise: bool = False
) -> dict[str, Array]:
    """Return random crops of training images, or normal noise, with labels."""
    transform, _ = transforms(dataset, augment=True)
    batch = next(
        iter(
            data.batches(dataset.train, size, epochs=1, seed=seed, transform=transform)
        )
    )
    image, label = jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
    if noise:
        key = jax.random.fold_in(jax.random.key(seed), NOISE_FOLD)
        image = jax.random.normal(key, image.shape)
    return {"image": image, "label": label}


def once(function: Callable) -> Callable:
    """Return a jitted function that runs little: LLVM's optimiser would cost more."""
    options = {"xla_backend_optimization_level": 0}
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=options if on_cpu else None)


def depth_supernet(config: Config, images: Images, blocks: int) -> search.Supernet:
    """Return ResNets of up to that many blocks a stage."""
    return search.depth_supernet(
        blocks,
        images.classes,
        widths=config.widths,
        channels_in=images.channels,
    )


class Scorer:
    """A space's students against one untrained ResNet; compiled once for all."""

    def __init__(self, config: Config, images: Images, space: search.ChoiceSpace):
        self.space = space
        blocks = (config.teacher_depth - 2) // 6
        self.teacher_depths = jnp.full(3, blocks)
        self.teacher = depth_supernet(config, images, blocks)
        if space == CELLS:
            # The metric on gradients wants as many channels as the teacher has.
            self.students = search.cell_supernet(
                images.classes,
                channels=config.widths[-1] // 4,
                cells=config.cells,
                channels_in=images.channels,
            )
        else:
            self.students = depth_supernet(config, images, max(space.choices))

    def position(self, architecture: Architecture) -> int:
        """Return the architecture's position in its space."""
        digits = [self.space.choices.index(choice) for choice in architecture]
        return sum(
            d * len(self.space.choices) ** i for i, d in enumerate(reversed(digits))
        )

    @cached_property
    def draw(self) -> Callable[..., Any]:
        """Return ``(who, initial, key) -> params``."""

        def gaussian(net: search.Supernet) -> Callable[[PRNGKeyArray], dict]:
            shapes = jax.eval_shape(net.init, jax.random.key(0))
            return once(lambda key: diswot.gaussian_reinit(shapes, key))

        compiled = {
            (who, initial): gaussian(net) if initial == "gaussian" else once(net.init)
            for who, net in (("teacher", self.teacher), ("student", self.students))
            for initial in ("gaussian", "default")
        }
        return lambda who, initial, key: compiled[who, initial](key)

    @cached_property
    def teach(self) -> Callable[..., diswot.Statistics]:
        """Return ``(params, image) ->`` the teacher's statistics."""
        return jax.jit(
            lambda params, image: _statistics(
                self.teacher, params, image, self.teacher_depths
            )
        )

    @cached_property
    def terms(self) -> Callable[..., dict[str, Array]]:
        """Return ``(params, architecture, teacher, batch) ->`` the score's terms."""

        def terms(params, architecture, teacher, batch):
            own = _statistics(self.students, params, batch["image"], architecture)
            found = {
                mode: -diswot.semantic_similarity(own, teacher, batch["label"], mode)
                for mode in MODES
            }
            relation = -diswot.relation_similarity(own.features, teacher.features)
            return {**found, "relation": relation}

        return jax.jit(terms)

    def scorer(
        self, seed: int, batch: dict[str, Array], initial: Initial = "gaussian"
    ) -> Callable[[Architecture], dict[str, float]]:
        """Return ``architecture ->`` its terms, higher is better."""
        key = jax.random.key(seed)
        teacher = self.teach(
            self.draw("teacher", initial, jax.random.fold_in(key, TEACHER_FOLD)),
            batch["image"],
        )

        def score(architecture: Architecture) -> dict[str, float]:
            own = jax.random.fold_in(key, self.position(architecture))
            params = self.draw("student", initial, own)
            found = self.terms(params, jnp.array(architecture), teacher, batch)
            return {name: float(value) for name, value in found.items()}

        return score


def _statistics(net, params, image, architecture) -> diswot.Statistics:
    outputs = net.apply(params, image, architecture, taps=("stage3",))
    return diswot.Statistics(
        outputs.features["stage3"], outputs.logits, params["fc"]["kernel"]
    )


def diswot_scores(terms: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Return every form of the score, one value an architecture."""
    columns = {name: np.array([row[name] for row in terms]) for name in terms[0]}
    semantic, relation = columns["fc_grad"], columns["relation"]
    return {
        "semantic": semantic,
        "semantic_cam": columns["cam"],
        "semantic_channel": columns["channel"],
        "relation": relation,
        "diswot": semantic + relation,
        "diswot_ranks": search.rank_sum(semantic, relation),
    }


def size_scores(config: Config, images: Images) -> dict[str, np.ndarray]:
    """Return S1's baselines that need no weights.

    Each block of a stage but its first costs the same, so four networks tell all costs.
    """
    architectures = np.array(depth_space(config).architectures())

    def network(*depths: int) -> Network:
        return cifar_resnet(
            depths, images.classes, widths=config.widths, channels_in=images.channels
        )

    def everywhere(measure: Callable[[Network], float]) -> np.ndarray:
        base = measure(network(1, 1, 1))
        longer = [measure(network(*(1 + (i == j) for i in range(3)))) for j in range(3)]
        return base + (architectures - 1) @ (np.array(longer) - base)

    shape = (1, images.side, images.side, images.channels)
    return {
        "depth": architectures.sum(1).astype(float),
        "parameters": everywhere(parameter_count),
        "flops": everywhere(lambda net: forward_cost(net, shape).flops),
    }


class Proxies:
    """The zero-cost proxies of S1's networks that need weights, at the usual init."""

    def __init__(self, config: Config, images: Images):
        self.space = depth_space(config)
        self.net = depth_supernet(config, images, max(config.choices))
        self.draw = once(self.net.init)
        self.sizes = size_scores(config, images)

        def measure(params, architecture, batch):
            def loss(params):
                outputs = self.net.apply(
                    params, batch["image"], architecture, taps=("codes",)
                )
                losses = cross_entropy_loss(outputs.logits, batch["label"])
                return losses.mean(), outputs.features["codes"]

            gradients, codes = jax.grad(loss, has_aux=True)(params)
            return {
                "grad_norm": search.grad_norm(gradients),
                "snip": search.snip(params, gradients),
                "nwot": search.nwot(codes),
            }

        def synflow(params, architecture):
            ones = jnp.ones((1, images.side, images.side, images.channels))
            return search.synflow(
                lambda p: self.net.apply(p, ones, architecture, train=False).logits,
                params,
            )

        self.measure, self.synflow = jax.jit(measure), jax.jit(synflow)

    def scores(self, seed: int, batch: dict[str, Array]) -> dict[str, np.ndarray]:
        """Return every proxy, one value an architecture."""
        key, rows = jax.random.key(seed), []
        for position, architecture in enumerate(self.space.architectures()):
            own = jax.random.fold_in(key, position)
            params = self.draw(own)
            row = self.measure(params, jnp.array(architecture), batch)
            exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
            with jax.enable_x64(True):
                row["synflow"] = self.synflow(exact, jnp.array(architecture))
            rows.append({name: float(value) for name, value in row.items()})
        measured = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        return self.sizes | measured
