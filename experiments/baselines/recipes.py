"""Every method of the table with the weights of its paper, for one pair of networks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import jaxkd
from experiments.common.networks import PairSpec
from jaxkd import Network, models, networks
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
from jaxkd.reporting.run import Arm, History
from jaxkd.types import Method, Variables

Recipes = dict[str, Callable[[], Arm]]
"""What makes each row of a pair, by its name; nothing is trained before that."""


@dataclass(frozen=True)
class Pair:
    """A teacher and a student to train.

    Attributes:
        spec: says which networks they are.
        student: the student's network.
        teacher: returns the teacher's, with its trained variables.
        train: ``(name, network, method, optimizer, epochs) ->`` a network trained on
            the student's images, without a teacher; an optimizer of None is the
            student's, and epochs of 0 are all of its.
        optimizer: the student's.
        labels: of the training examples.
        image: the shape of one image in a batch.
        steps_per_epoch: of the student's training.
        warmup_epochs: in which weights rise that rise (20 of 240 in the benchmarks).
        stage_one_epochs: of AB's and FSP's first stage and the paraphraser's training
            (30 in the benchmarks).
    """

    spec: PairSpec
    student: Network
    teacher: Callable[[], Network]
    train: Callable[..., Network]
    optimizer: optax.GradientTransformation
    labels: np.ndarray
    image: jax.ShapeDtypeStruct
    steps_per_epoch: int
    warmup_epochs: int
    stage_one_epochs: int

    def arm(
        self,
        method: Method,
        student: Network,
        teacher: Network | None,
        deployed: Network,
        watched: str = "",
    ) -> Arm:
        """Return a row.

        Args:
            method: the objective.
            student: the network trained.
            teacher: the network learnt from.
            deployed: the network evaluated, on the trained variables.
            watched: the metric of the method's own loss, which should fall.
        """

        def measure(state: Any, history: History) -> dict[str, float]:
            if not watched:
                return {}
            first, last = (history[i][f"train_{watched}"] for i in (0, -1))
            return {"first_loss": first, "last_loss": last}

        program = jaxkd.distill(student, teacher, method, self.optimizer)
        return Arm("", program, deployed, measure=measure)

    def taught(self, method: Method, watched: str = "") -> Arm:
        """Return the row of the pair's student, which the teacher teaches."""
        return self.arm(method, self.student, self.teacher(), self.student, watched)


def recipes(pair: Pair) -> Recipes:
    """Return the rows of a pair."""
    return logit_recipes(pair) | (stage_recipes(pair) if pair.spec.stages else {})


def logit_recipes(pair: Pair) -> Recipes:
    """Return the recipes that need logits or pooled features alone."""
    ce = cross_entropy()
    labels, epochs = pair.labels, (pair.steps_per_epoch, pair.warmup_epochs)
    curriculum = ctkd_curriculum(pair.steps_per_epoch, max(pair.warmup_epochs // 2, 1))
    # A data set of 100 digits leaves 90 of other classes to draw from.
    negatives = min(16384, len(labels) - int(np.bincount(labels).max()))

    def from_teacher(*terms, watched="") -> Callable[[], Arm]:
        return lambda: pair.taught(combine(*terms), watched)

    def alone(method: Method) -> Callable[[], Arm]:
        return lambda: pair.arm(method, pair.student, None, pair.student)

    def peers(method: Method) -> Callable[[], Arm]:
        both = networks.ensemble([pair.student, pair.student], mean="logits")
        one_of_them = networks.with_logits(both, "0.logits")
        return lambda: pair.arm(method, both, None, one_of_them)

    def from_itself() -> Arm:
        itself = pair.train("student-on-labels", pair.student, ce)
        method = combine((0.1, ce), (0.9, kd(4.0)))
        return pair.arm(method, pair.student, itself, pair.student)

    return {
        "cross_entropy": alone(ce),
        "label_smoothing": alone(cross_entropy(0.1)),
        "self_distillation": from_itself,
        "kd": from_teacher((0.1, ce), (0.9, kd(4.0))),
        "dkd": from_teacher(
            (1.0, ce), (epoch_warmup(1.0, *epochs), dkd(4.0, 1.0, pair.spec.dkd_beta))
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


def stage_recipes(pair: Pair) -> Recipes:
    """Return the recipes that need convolutional stages."""
    ce = cross_entropy()
    spec, stages = pair.spec, pair.spec.stages
    last, before_relu = stages[-1], tuple(f"{stage}.pre" for stage in stages)

    def added(weight, method: Method, watched: str) -> Callable[[], Arm]:
        return lambda: pair.taught(combine((1.0, ce), (weight, method)), watched)

    def staged(weight: float, method: Method, watched: str) -> Callable[[], Arm]:
        """First the method alone, then cross-entropy alone."""
        switch = [pair.stage_one_epochs * pair.steps_per_epoch]
        constant = optax.constant_schedule
        terms = combine(
            (optax.join_schedules([constant(0.0), constant(1.0)], switch), ce),
            (optax.join_schedules([constant(weight), constant(0.0)], switch), method),
        )
        return lambda: pair.taught(terms, watched)

    def teachers_variables() -> Any:
        return pair.teacher().init(jax.random.key(0))

    def overhauled() -> Arm:
        norms = stage_norms(spec.teacher.name, teachers_variables(), stages)
        return added(1e-3, ofd(before_relu, norms), "ofd")()

    def factor_transfer() -> Arm:
        channels = classifier(teachers_variables())[0].shape[0]
        teacher = pair.train(
            "paraphraser",
            paraphrased(pair.teacher(), last, channels),
            paraphraser_loss(last),
            optax.adam(1e-2),
            pair.stage_one_epochs,
        )
        method = combine((1.0, ce), (200.0, ft(last)))
        return pair.arm(method, pair.student, teacher, pair.student, "ft")

    def reused_classifier() -> Arm:
        teacher = pair.teacher()

        def tapped(network: Network, image: jax.Array) -> jax.Array:
            variables = network.init(jax.random.key(0))
            return network.apply(variables, image, taps=(last,))[0].features[last]

        mine, theirs = (
            jax.eval_shape(partial(tapped, network), pair.image).shape
            for network in (pair.student, teacher)
        )
        head = classifier(teachers_variables())
        student = simkd_student(pair.student, last, mine[-1], theirs[1:], head)
        return pair.arm(simkd(last), student, teacher, student, "simkd")

    recipes = {
        "sp": added(3000.0, sp(last), "sp"),
        "fitnets": added(100.0, fitnets(stages[1]), "fitnets"),
        "at": added(1000.0, at(stages), "at"),
        "nst": added(50.0, nst([last]), "nst"),
        "ft": factor_transfer,
        "vid": added(1.0, vid(stages), "vid"),
        "ab": staged(1.0, ab(before_relu), "ab"),
        "fsp": staged(50.0, fsp(stages), "fsp"),
        "ofd": overhauled,
        "reviewkd": added(
            epoch_warmup(5.0, pair.steps_per_epoch, pair.warmup_epochs),
            reviewkd(stages, before_relu, mid=64),
            "reviewkd",
        ),
        "simkd": reused_classifier,
        "mgd": added(7e-5, mgd(last), "mgd"),
        "cwd": added(50.0, cwd(last), "cwd"),
    }
    if spec.branched is not None:
        branched = models.one_cnn(classes=int(pair.labels.max()) + 1, **spec.branched)
        branch = networks.with_logits(branched, "0.logits")
        recipes["one"] = lambda: pair.arm(one(), branched, None, branch)
    return recipes


def classifier(variables: Variables) -> tuple[Any, Any]:
    """Return kernel and bias of a network's last linear layer."""
    params = variables["params"]
    head = params["fc"] if "fc" in params else params["head"]
    return head["kernel"], head["bias"]


def stage_norms(network: str, variables: Variables, stages: tuple[str, ...]):
    """Return (scale, bias) of the BatchNorm before the ReLU that ends each stage."""
    params = variables["params"]

    def last(layers: dict[str, Any]) -> Any:
        return layers[str(len(layers) - 1)]

    found = []
    for stage in stages:
        i = int(stage.removeprefix("stage"))
        if network in ("cnn", "vgg"):
            norm = last(params["stages"][str(i)]["norms"])
        elif network == "wide_resnet":
            following = params["layers"].get(str(i))
            norm = following["0"]["bn1"] if following else params["bn1"]
        else:
            block = last(params["layers"][str(i - 1)])
            norm = block["bn3"] if "bn3" in block else block["bn2"]
        found.append((norm["scale"], norm["bias"]))
    return found
