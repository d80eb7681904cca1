"""Every method of the table with the weights of its paper, for one pair of networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
import optax

import jaxkd
from jaxkd import Network, networks, training
from jaxkd.methods import (
    ab,
    at,
    cc,
    combine,
    crd,
    cross_entropy,
    ctkd,
    ctkd_curriculum,
    cwd,
    dist,
    dkd,
    dml,
    epoch_warmup,
    fitnets,
    fsp,
    ft,
    kd,
    kdcl,
    lskd,
    mgd,
    nst,
    ofd,
    one,
    paraphrased,
    paraphraser_loss,
    pkt,
    reviewkd,
    rkd,
    simkd,
    simkd_student,
    sp,
    vid,
)
from jaxkd.types import Method


@dataclass(frozen=True)
class Pair:
    """A trained teacher and a student to train.

    Attributes:
        student: the student's network.
        teacher: the teacher's, with its trained variables.
        classifier: kernel and bias of the teacher's last layer.
        norms: (scale, bias) of the BatchNorm that makes each stage of the teacher.
        peer: returns a student trained on the labels alone, for self-distillation.
        labels: of the training examples.
        batches: ``epochs ->`` a few epochs of training batches, for a paraphraser.
        steps_per_epoch: of the student's training.
        warmup_epochs: in which weights rise that rise (20 of 240 in the benchmarks).
        stage_one_epochs: of AB's and FSP's first stage and the paraphraser's training
            (30 in the benchmarks).
        stages: taps of the convolutional stages, shallow to deep; none for an MLP.
        branched: ONE's network of the student's size, or None.
        dkd_beta: DKD's weight of the other classes.
    """

    student: Network
    teacher: Network
    classifier: tuple[Any, Any]
    norms: Sequence[tuple[Any, Any]]
    peer: Callable[[], Network]
    labels: np.ndarray
    batches: Callable[[int], grain.IterDataset]
    steps_per_epoch: int
    warmup_epochs: int
    stage_one_epochs: int
    stages: tuple[str, ...]
    branched: Network | None
    dkd_beta: float


@dataclass(frozen=True)
class Recipe:
    """What to train: a student, perhaps a teacher, and the objective.

    Attributes:
        method: the objective.
        student: the network trained.
        teacher: the network learnt from.
        deployed: the network evaluated, on the trained variables.
        watched: the metric of the method's own loss, which should fall.
    """

    method: Method
    student: Network
    teacher: Network | None
    deployed: Network
    watched: str | None = None


def logit_recipes(pair: Pair) -> dict[str, Callable[[], Recipe]]:
    """Return the recipes that need logits or pooled features alone."""
    ce = cross_entropy()
    labels, epochs = pair.labels, (pair.steps_per_epoch, pair.warmup_epochs)
    curriculum = ctkd_curriculum(pair.steps_per_epoch, max(pair.warmup_epochs // 2, 1))
    # A data set of 100 digits leaves 90 of other classes to draw from.
    negatives = min(16384, len(labels) - int(np.bincount(labels).max()))

    def from_teacher(*terms, watched=None) -> Callable[[], Recipe]:
        return lambda: Recipe(
            combine(*terms), pair.student, pair.teacher, pair.student, watched
        )

    def alone(method: Method) -> Callable[[], Recipe]:
        return lambda: Recipe(method, pair.student, None, pair.student)

    def peers(method: Method) -> Callable[[], Recipe]:
        both = networks.ensemble([pair.student, pair.student], mean="logits")
        one_of_them = networks.with_logits(both, "0.logits")
        return lambda: Recipe(method, both, None, one_of_them)

    return {
        "cross_entropy": alone(ce),
        "label_smoothing": alone(cross_entropy(0.1)),
        "self_distillation": lambda: Recipe(
            combine((0.1, ce), (0.9, kd(4.0))), pair.student, pair.peer(), pair.student
        ),
        "kd": from_teacher((0.1, ce), (0.9, kd(4.0))),
        "dkd": from_teacher(
            (1.0, ce), (epoch_warmup(1.0, *epochs), dkd(4.0, 1.0, pair.dkd_beta))
        ),
        "dist": from_teacher((1.0, ce), (1.0, dist(2.0, 2.0, 4.0))),
        "lskd": from_teacher((0.1, ce), (9.0, lskd(kd(2.0)))),
        "ctkd": from_teacher((0.1, ce), (0.9, ctkd(curriculum))),
        "rkd": from_teacher((1.0, ce), (1.0, rkd("pooled")), watched="rkd"),
        "pkt": from_teacher((1.0, ce), (3e4, pkt("pooled")), watched="pkt"),
        "cc": from_teacher((1.0, ce), (0.02, cc("pooled")), watched="cc"),
        "crd": from_teacher(
            (1.0, ce),
            (0.8, crd("pooled", labels, negatives=negatives)),
            watched="crd",
        ),
        "dml": peers(dml()),
        "kdcl": peers(kdcl()),
    }


def stage_recipes(pair: Pair, seed: int) -> dict[str, Callable[[], Recipe]]:
    """Return the recipes that need convolutional stages.

    Args:
        pair: with stages.
        seed: of the paraphraser's training.
    """
    ce = cross_entropy()
    stages, last = pair.stages, pair.stages[-1]
    before_relu = tuple(f"{stage}.pre" for stage in stages)

    def added(weight, method: Method, watched: str) -> Callable[[], Recipe]:
        terms = combine((1.0, ce), (weight, method))
        return lambda: Recipe(terms, pair.student, pair.teacher, pair.student, watched)

    def staged(weight: float, method: Method, watched: str) -> Callable[[], Recipe]:
        """First the method alone, then cross-entropy alone."""
        switch = [pair.stage_one_epochs * pair.steps_per_epoch]
        constant = optax.constant_schedule
        terms = combine(
            (optax.join_schedules([constant(0.0), constant(1.0)], switch), ce),
            (optax.join_schedules([constant(weight), constant(0.0)], switch), method),
        )
        return lambda: Recipe(terms, pair.student, pair.teacher, pair.student, watched)

    def factor_transfer() -> Recipe:
        teacher = train_paraphraser(pair, last, seed)
        method = combine((1.0, ce), (200.0, ft(last)))
        return Recipe(method, pair.student, teacher, pair.student, "ft")

    def reused_classifier() -> Recipe:
        image = next(iter(pair.batches(1)))["image"]
        shapes = [
            jax.eval_shape(
                lambda net=net: net.apply(
                    net.init(jax.random.key(0)), image, taps=(last,)
                )
            )[0]
            .features[last]
            .shape
            for net in (pair.student, pair.teacher)
        ]
        student = simkd_student(
            pair.student,
            last,
            shapes[0][-1],
            shapes[1][1:],
            pair.classifier,
        )
        return Recipe(simkd(last), student, pair.teacher, student, "simkd")

    recipes = {
        "sp": added(3000.0, sp(last), "sp"),
        "fitnets": added(100.0, fitnets(stages[1]), "fitnets"),
        "at": added(1000.0, at(stages), "at"),
        "nst": added(50.0, nst([last]), "nst"),
        "ft": factor_transfer,
        "vid": added(1.0, vid(stages), "vid"),
        "ab": staged(1.0, ab(before_relu), "ab"),
        "fsp": staged(50.0, fsp(stages), "fsp"),
        "ofd": added(1e-3, ofd(before_relu, pair.norms), "ofd"),
        "reviewkd": added(
            epoch_warmup(5.0, pair.steps_per_epoch, pair.warmup_epochs),
            reviewkd(stages, before_relu, mid=64),
            "reviewkd",
        ),
        "simkd": reused_classifier,
        "mgd": added(7e-5, mgd(last), "mgd"),
        "cwd": added(50.0, cwd(last), "cwd"),
    }
    if pair.branched is not None:
        branched = pair.branched
        branch = networks.with_logits(branched, "0.logits")
        recipes["one"] = lambda: Recipe(one(), branched, None, branch)
    return recipes


def train_paraphraser(pair: Pair, tap: str, seed: int) -> Network:
    """Return the teacher with a paraphraser trained on the training images."""
    channels = pair.classifier[0].shape[0]
    network = paraphrased(pair.teacher, tap, channels)
    program = jaxkd.distill(network, None, paraphraser_loss(tap), optax.adam(1e-2))
    state, _ = training.fit(
        program,
        pair.batches(pair.stage_one_epochs),
        key=jax.random.key(seed),
    )
    return network.with_variables(state.student)
