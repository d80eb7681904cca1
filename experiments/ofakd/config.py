"""What can be set of a run: the pairs of networks, their recipes, and the presets."""

from dataclasses import dataclass

from experiments.common.training import NetworkSpec
from jaxkd.methods.modules.exits import split_stages

METHODS = ("cross_entropy", "kd", "fitnets", "ofakd")


@dataclass(frozen=True)
class Recipe:
    """How the students of a setting are trained.

    Attributes:
        epochs: of training.
        batch_size: over all devices.
        optimizer: ``adamw``, or ``sgd`` with Nesterov's momentum of 0.9.
        learning_rate: at its highest.
        final_rate: where the cosine ends.
        milestones: epochs after which the rate is a tenth, in place of a cosine.
        warmup_epochs: in which the rate rises linearly.
        warmup_rate: where it rises from.
        weight_decay: of matrices and kernels, not of scales, biases and norms.
        clip: norm to which gradients are clipped; 0 for none.
        label_smoothing: of the cross-entropy.
        mixup: α of Mixup; 0 for none.
        cutmix: α of CutMix, drawn for every second batch where both are on.
        shift: pixels by which images are shifted at random.
        flip: whether they are mirrored at random.
        average: decay of the moving average that is tested; 0 for none.
        evaluate_every: epochs between evaluations.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    final_rate: float = 0.0
    milestones: tuple[int, ...] = ()
    warmup_epochs: int = 0
    warmup_rate: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    shift: int = 0
    flip: bool = False
    average: float = 0.0
    evaluate_every: int = 1


@dataclass(frozen=True)
class Setting:
    """A data set, a teacher and a student.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``.
        teacher: the network to learn from.
        student: the network to train.
        taps: the student's stages, shallow to deep.
        recipe: of the students.
        gamma: of the one-for-all loss.
        teacher_recipe: of the teacher, which sees all examples; None reads its folder.
        train_examples: that the students see; 0 for all.
        test_examples: that all are tested on; 0 for all.
        side: pixels to which CIFAR's images are brought; 0 leaves images alone.
        methods: that are run.
        seeds: that are run at most; 0 for all.
    """

    dataset: str
    teacher: NetworkSpec
    student: NetworkSpec
    taps: tuple[str, ...]
    recipe: Recipe
    gamma: float = 1.0
    teacher_recipe: Recipe | None = None
    train_examples: int = 0
    test_examples: int = 0
    side: int = 0
    methods: tuple[str, ...] = METHODS
    seeds: int = 0


@dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        settings: names of `SETTINGS`.
        cka: whether features of networks of one and of two families are compared.
        epochs: of students and teachers, in place of their recipes'; 0 for those.
        teachers: folder of the trained teachers that a run does not train, each in a
            folder of its model's, size's and data set's names, such as
            ``swin-tiny-cifar100``, as ``jaxkd.interop.save_pretrained`` writes it.
        half: whether networks compute in bfloat16.
    """

    settings: tuple[str, ...]
    cka: bool = False
    epochs: int = 0
    teachers: str = "teachers"
    half: bool = False


STAGES = tuple(f"stage{i}" for i in range(1, 5))
HIDDEN = tuple(f"hidden{i}" for i in range(4))
TWELVE = tuple(f"block{blocks[-1]}" for blocks in split_stages(12))

DIGITS = Recipe(60, 50, "adamw", 3e-3, weight_decay=0.05, shift=1, evaluate_every=5)
CNN: NetworkSpec = ("cnn", {"channels": (32, 64, 128, 128)})
OTHER_CNN: NetworkSpec = ("cnn", {"channels": (16, 32, 64, 64)})
MLP: NetworkSpec = ("mlp", {"features": 64, "widths": (64, 64, 64, 64)})

CIFAR = Recipe(
    6, 64, "adamw", 1e-3, weight_decay=0.05, shift=2, flip=True, evaluate_every=3
)
RESNET20 = Recipe(4, 64, "sgd", 0.05, weight_decay=5e-4, shift=2, flip=True)
PATCHES = {"image_size": 16, "patch_size": 4}

# One TPU v5e:2x4 has the eight devices of the authors' machine, 128 images each.
CONVOLUTIONAL = Recipe(
    300,
    8 * 128,
    "sgd",
    0.05,
    final_rate=1e-3,
    warmup_epochs=3,
    warmup_rate=1e-4,
    weight_decay=2e-3,
    label_smoothing=0.1,
)
PATCHED = Recipe(
    300,
    8 * 128,
    "adamw",
    5e-4,
    final_rate=1e-5,
    warmup_epochs=20,
    warmup_rate=5e-7,
    weight_decay=0.05,
    clip=5.0,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
IMAGENET_CONVOLUTIONAL = Recipe(
    100,
    8 * 64,
    "sgd",
    0.1,
    milestones=(30, 60, 90),
    warmup_epochs=3,
    warmup_rate=1e-4,
    weight_decay=1e-4,
    label_smoothing=0.1,
)
IMAGENET_PATCHED = Recipe(
    300,
    8 * 128,
    "adamw",
    5e-4,
    final_rate=1e-6,
    warmup_epochs=20,
    warmup_rate=5e-7,
    weight_decay=0.05,
    clip=5.0,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    average=0.99996,
)

TEACHERS: dict[str, NetworkSpec] = {
    "swin_t": ("swin", {"size": "tiny"}),
    "vit_s": ("vit", {"size": "small"}),
    "mixer_b16": ("mlp_mixer", {"size": "base"}),
    "convnext_t": ("convnext", {"size": "tiny"}),
    "deit_t": ("vit", {"size": "tiny"}),
}
STUDENTS: dict[str, tuple[NetworkSpec, tuple[str, ...]]] = {
    "resnet18": (("imagenet_resnet", {"depth": 18}), STAGES),
    "mobilenet_v2": (
        ("mobilenet_v2", {"width": 1.0, "form": "imagenet"}),
        (*STAGES[:3], "final"),
    ),
    "deit_t": (("vit", {"size": "tiny"}), TWELVE),
    "swin_p": (("swin", {"size": "pico"}), STAGES),
    "resmlp_s12": (("resmlp", {"size": "s12"}), TWELVE),
}


def _full(dataset: str, pair: str, gamma: float = 1.2) -> Setting:
    teacher, student = pair.split("-")
    network, taps = STUDENTS[student]
    convolutional = student in ("resnet18", "mobilenet_v2")
    if dataset == "tfds/cifar100":
        recipe, side = CONVOLUTIONAL if convolutional else PATCHED, 224
    else:
        recipe = IMAGENET_CONVOLUTIONAL if convolutional else IMAGENET_PATCHED
        side = 0
    return Setting(dataset, TEACHERS[teacher], network, taps, recipe, gamma, side=side)


def _digits(examples: int) -> Setting:
    return Setting(
        "digits", CNN, MLP, HIDDEN, DIGITS, 1.2, DIGITS, train_examples=examples
    )


def _cifar(student: NetworkSpec) -> Setting:
    return Setting(
        "cifar10",
        ("cifar_resnet", {"depth": 20}),
        student,
        tuple(f"block{i}" for i in range(4)),
        CIFAR,
        1.2,
        RESNET20,
        train_examples=5000,
        test_examples=2000,
        side=16,
        methods=("cross_entropy", "kd", "ofakd"),
        seeds=3,
    )


SETTINGS = {
    "digits-500": _digits(500),
    "digits-200": _digits(200),
    "resnet20-vit": _cifar(("vit", {"size": (64, 4, 4), **PATCHES})),
    "resnet20-resmlp": _cifar(("resmlp", {"size": (64, 4), **PATCHES})),
    # The pairs of the paper's table on CIFAR-100; γ where the authors give it.
    "swin_t-resnet18": _full("tfds/cifar100", "swin_t-resnet18", 1.0),
    **{
        pair: _full("tfds/cifar100", pair)
        for pair in (
            "vit_s-mobilenet_v2",
            "mixer_b16-resnet18",
            "convnext_t-deit_t",
            "convnext_t-swin_p",
            "convnext_t-resmlp_s12",
        )
    },
    "imagenet/deit_t-resnet18": _full("tfds/imagenet2012", "deit_t-resnet18", 1.5),
    **{
        f"imagenet/{pair}": _full("tfds/imagenet2012", pair)
        for pair in ("swin_t-resnet18", "convnext_t-deit_t", "swin_t-resmlp_s12")
    },
}
"""Settings by name: teacher and student of different families."""

SMALL_SETTINGS = tuple(SETTINGS)[:4]
CIFAR100_SETTINGS = tuple(SETTINGS)[4:10]
IMAGENET_SETTINGS = tuple(SETTINGS)[10:]

PRESETS = {
    "small": Config(SMALL_SETTINGS, cka=True),
    "paper": Config(CIFAR100_SETTINGS, half=True),
    "imagenet": Config(IMAGENET_SETTINGS, half=True),
}

CIFAR100_TABLE = {
    "swin_t-resnet18": (74.01, 78.87, 80.54),
    "vit_s-mobilenet_v2": (73.68, 73.54, 78.45),
    "convnext_t-deit_t": (68.00, 60.78, 75.76),
    "convnext_t-resmlp_s12": (66.56, 45.47, 81.22),
}
IMAGENET_TABLE = {
    "swin_t-resnet18": (71.14, 71.85),
    "convnext_t-deit_t": (74.00, 74.41),
    "swin_t-resmlp_s12": (76.67, 77.31),
}
PAPER = {
    f"{setting}/{method}": {"best_accuracy": round(value / 100, 4)}
    for names, prefix, table in (
        (("cross_entropy", "fitnets", "ofakd"), "", CIFAR100_TABLE),
        (("kd", "ofakd"), "imagenet/", IMAGENET_TABLE),
    )
    for setting, row in ((prefix + pair, row) for pair, row in table.items())
    for method, value in zip(names, row, strict=True)
} | {"convnext_t-swin_p/fitnets": {"best_accuracy": 0.2406}}
"""The paper's top-1 accuracies that could be confirmed, as fractions."""
