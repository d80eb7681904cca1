"""LELP: few classes, taught through the kinds that a teacher sees inside them.

Loo et al. 2024 (arXiv:2409.20449) divide each class's probability among sub-classes,
along the main directions in which the teacher's features vary inside the class. The
student learns all of them by one cross-entropy and sums them up when it is used.

``small`` has digits, 0 to 4 against 5 to 9, and TREC's questions; ``gpu`` and ``paper``
the first half of CIFAR's classes against the second.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification, image_batch
from experiments.common.configs import choose
from experiments.lelp.clusters import assigned, purity, random_directions
from experiments.lelp.settings import (
    CLUSTERED,
    GPU,
    PAPER_PAIRS,
    ROWS,
    SETTINGS,
    SMALL,
    Setting,
    coarse,
)
from jaxkd import distill
from jaxkd.evaluation.classification import example_labels
from jaxkd.evaluation.features import tapped
from jaxkd.losses import SubclassDirections, kd_loss, subclass_targets
from jaxkd.losses.basics import l2_normalize, logsumexp
from jaxkd.methods import (
    combine,
    crd,
    cross_entropy,
    dkd,
    fitnets,
    from_loss,
    kd,
    lelp,
    subclass_kd,
)
from jaxkd.networks import with_subclasses
from jaxkd.networks.subclasses import SUBCLASS_TAP
from jaxkd.papers.lelp import subclass_directions
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.paper import PaperValue
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Method, Outputs, Program

declare(
    purity=Metric("purity %", higher_is_better=True),
    variance_ratio=Metric("variance ratio"),
    target_error=Metric("error of marginals"),
    read_share=Metric("read by the last layer"),
)


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        settings: names of `SETTINGS`, one table each.
        methods: the rows, in place of each setting's; empty for those.
    """

    settings: tuple[str, ...]
    methods: tuple[str, ...] = ()


PRESETS = {"small": Config(SMALL), "gpu": Config(GPU), "paper": Config(PAPER_PAIRS)}

PAPER = {
    f"cifar100-bin, resnet92-mobilenet_v2/{row}": {
        "last_accuracy": PaperValue(value, "quoted in a public review", checked=False)
    }
    for row, value in (("kd", 0.7145), ("kmeans", 0.6897))
}

CLAIMS = [
    *(
        claim
        for setting in SMALL[:2]
        for claim in (
            contrast("oracle", "kd", "last_accuracy", setting=setting),
            contrast("lelp", "random", "last_accuracy", setting=setting),
            contrast(
                *("lelp", "kd", "last_accuracy", 0.025, "non-inferiority"),
                setting=setting,
                because="three standard errors of an earlier trial",
            ),
            contrast(
                "lelp", "lelp_unrotated", "variance_ratio", setting=setting, lower=True
            ),
            observed("lelp", "<=", 1e-5, "target_error", setting=setting),
            observed("lelp", "<=", 1e-5, "read_share", setting=setting),
        )
    ),
    # What the paper claims, where its mechanism may have more to find.
    *(
        claim
        for setting in (SMALL[2], *GPU, *PAPER_PAIRS)
        for claim in (
            contrast("lelp", "kd", "last_accuracy", setting=setting),
            contrast("lelp", "kmeans", "last_accuracy", setting=setting),
            contrast("oracle", "kd", "last_accuracy", setting=setting),
        )
    ),
]


@dataclass(frozen=True)
class Known:
    """What a student may be taught by.

    Attributes:
        setting: the table's.
        images: the student's examples, with coarse labels.
        labels: of its training examples.
        fine: their finer labels.
        outputs: the teacher's of them, with its features.
        kernel: of the teacher's last layer.
        key: of clusters and rotations.
    """

    setting: Setting
    images: Classification
    labels: np.ndarray
    fine: np.ndarray
    outputs: Outputs
    kernel: np.ndarray
    key: jax.Array


def coarse_methods(known: Known) -> dict[str, Method]:
    """Return the methods whose students have an output a class."""
    size, soft = len(known.labels), (1.0, kd(4.0))
    contrastive = crd("pooled", known.labels, negatives=min(16384, size // 3))
    return {
        "cross_entropy": cross_entropy(),
        "kd": kd(4.0),
        "kd_t1": kd(1.0),
        "dkd": dkd(),
        "fitnets": combine(soft, (1.0, fitnets("pooled"))),
        "crd": combine(soft, (0.8, contrastive)),
    }


def divided(row: str, known: Known) -> tuple[Method, int, Values]:
    """Return a row's method of sub-classes, its student's outputs, what was measured.

    ``purity`` is the share of training examples that are of the most frequent finer
    label of their part of their class.
    """
    classes, subclasses = known.images.classes, known.setting.subclasses
    h = known.outputs.features["pooled"]
    given = h, known.labels, classes, subclasses, known.key
    if row == "oracle":
        kinds = known.setting.load().train.classes // classes
        return subclass_kd(known.fine, kinds), classes * kinds, {"purity": 1.0}
    if row in CLUSTERED:
        parts = assigned(row, *given)
        values = {"purity": purity(parts, known.fine)}
        return subclass_kd(parts, subclasses), classes * subclasses, values
    options = {
        "lelp": {"kernel": known.kernel},
        "lelp_t4": {"kernel": known.kernel},
        "lelp_raw": {},
        "lelp_unrotated": {"kernel": known.kernel, "rotate": False},
    }
    found = (
        random_directions(*given)
        if row == "random_directions"
        else subclass_directions(*given, **options[row])
    )
    temperature = 4.0 if row == "lelp_t4" else 1.0
    method = lelp(found, known.setting.beta, temperature)
    return method, classes * subclasses, described(found, known)


def described(found: SubclassDirections, known: Known) -> dict[str, float]:
    """Return what a class's directions found, and how far their identities hold."""
    h, logits = known.outputs.features["pooled"], jnp.asarray(known.outputs.logits)
    log_t = subclass_targets(jnp.asarray(h), logits, found, known.setting.beta)
    targets = np.asarray(log_t)
    own = targets[np.arange(len(h)), known.labels].argmax(-1)
    parts = known.labels * targets.shape[-1] + own
    p = np.asarray(jax.nn.softmax(logits))
    variances = [
        np.var(h[known.labels == c] @ np.asarray(directions), axis=0)
        for c, directions in enumerate(found.directions)
    ]
    read = np.einsum("dk,cds->cks", known.kernel, found.directions)
    size = np.linalg.norm(known.kernel) * np.linalg.norm(found.directions)
    return {
        "purity": purity(parts, known.fine),
        "variance_ratio": float(np.mean([v.max() / v.min() for v in variances])),
        "target_error": float(np.abs(np.exp(targets).sum(-1) - p).max()),
        "read_share": float(np.linalg.norm(read) / size),
    }


def spread() -> Method:
    """Return the loss that keeps a teacher's sub-classes apart.

    Müller et al. 2020 (Subclass Distillation, arXiv:2002.03936), Eq. 3: an example's
    outputs are to be unlike the other examples' of its batch.
    """

    def loss(student, teacher, batch):
        z = student.features[SUBCLASS_TAP]
        unit = l2_normalize(z - z.mean(0))
        return logsumexp(unit @ unit.T).mean() - 1 - jnp.log(len(z))

    return from_loss(loss, name="spread", student_taps=(SUBCLASS_TAP,))


def outputs_kd() -> Method:
    """Return KD on all sub-classes of a teacher that has its own."""
    taps = (SUBCLASS_TAP,)

    def loss(student, teacher, batch):
        z_s, z_t = (network.features[SUBCLASS_TAP] for network in (student, teacher))
        return kd_loss(z_s, z_t, 4.0)

    return from_loss(loss, name="outputs_kd", student_taps=taps, teacher_taps=taps)


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield every setting's teacher and students."""
    for name, setting in choose("setting", config.settings, SETTINGS).items():
        rows = config.methods or setting.methods
        rows = choose("method", rows, dict.fromkeys(ROWS))
        loaded = setting.load()
        images = loaded.subset(setting.train_examples)
        fine = example_labels(images.train)
        whole, images = (
            replace(
                some,
                train=coarse(some.train, setting.classes),
                test=coarse(some.test, setting.classes),
            )
            for some in (loaded, images)
        )
        whole = replace(
            whole, epochs=setting.teacher_epochs, optimizer=setting.teacher_optimizer
        )
        network = setting.build(setting.teacher, setting.classes)
        teacher = whole.teacher(run, network, setting.task.dataset, seed)
        yield teacher, images.task(name)
        task = images.task(name, images.logits(teacher.deployed))
        variables = teacher.deployed.init(jax.random.key(0))
        known = Known(
            setting,
            images,
            example_labels(images.train),
            fine,
            tapped(network, variables, images.train, transform=images.test_transform),
            np.asarray(last_kernel(variables["params"])),
            jax.random.key(seed),
        )
        plain = coarse_methods(known)
        for row in rows:
            taught, values = teacher.deployed, {}
            if row in plain:
                student = setting.build(setting.student, setting.classes)
                method = plain[row]
            else:
                if row == "subclass_distillation":
                    own = subclass_teacher(setting, whole, run, seed)
                    yield own, images.task(name)
                    taught, method = own.deployed, outputs_kd()
                    outputs = setting.classes * setting.subclasses
                else:
                    method, outputs, values = divided(row, known)
                inside = setting.build(setting.student, outputs)
                student = with_subclasses(inside, setting.classes)
            program = images.distill(student, taught, method)
            yield Arm(row, program, student, measure=always(values)), task


def always(values: Values) -> Callable[[Any, History], Values]:
    """Return what measures the same of every student."""
    return lambda state, history: values


def last_kernel(params: Any) -> jax.Array:
    """Return the weights of a network's last layer."""
    return params["fc" if "fc" in params else "head"]["kernel"]


def subclass_teacher(
    setting: Setting, images: Classification, run: Run, seed: int
) -> Arm:
    """Return a teacher that is trained with sub-classes of its own."""
    outputs = setting.classes * setting.subclasses
    network = with_subclasses(setting.build(setting.teacher, outputs), setting.classes)
    method = combine((1.0, cross_entropy()), (1.0, spread()))
    program = images.distill(network, None, method)
    arm = Arm("subclass_teacher", program, network)
    return run.teacher(arm, images.task(setting.task.dataset), seed)


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return LELP's program of each pair, with the shapes of its batch."""
    found = {}
    for name, setting in choose("setting", config.settings, SETTINGS).items():
        teacher = setting.build(setting.teacher, setting.classes)
        outputs = setting.classes * setting.subclasses
        student = with_subclasses(
            setting.build(setting.student, outputs), setting.classes
        )
        params = jax.eval_shape(teacher.init, jax.random.key(0))["params"]
        channels, epochs = len(last_kernel(params)), setting.task.epochs
        directions = SubclassDirections(
            jnp.zeros((setting.classes, channels)),
            jnp.zeros((setting.classes, channels, setting.subclasses)),
        )
        method = lelp(directions, setting.beta)
        optimizer = setting.optimizer.build(epochs, epochs)
        program = distill(student, teacher, method, optimizer)
        found[name] = program, image_batch(setting.task.batch_size, 32)
    return found


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("teacher", "student", "order"),
)
