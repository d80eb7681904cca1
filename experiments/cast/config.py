"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass, field
from typing import Any

import optax

from experiments.common.configs import OptimizerConfig
from experiments.common.corpus import CorpusConfig
from jaxkd import models
from jaxkd.network import Network
from jaxkd.papers.cast.optimizers import decay_budget

SCOPE = r"blocks\.(attention|mlp)\..*\.kernel"
"""All projections inside the blocks; embeddings, norms and the head stay dense."""

SMALL_MODEL = {"width": 64, "layers": 6, "heads": 4, "kv_heads": 2, "hidden": 160}
METHODS = (
    *("one_shot", "fixed_mask", "sr_ste", "ast", "cast"),
    *("cast_no_scales", "cast_no_kd", "dense"),
)


def decayed(decay: float) -> str:
    """Return the name of CAST with another decay."""
    return f"cast_{decay:g}"


def trained_for(steps: int) -> str:
    """Return the name of CAST with another number of steps."""
    return f"cast_{steps}_steps"


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        setting: the name of the table.
        corpus: the text.
        model: arguments of ``jaxkd.models.llama`` but the vocabulary.
        weights: folder of the trained dense model; empty to train one here.
        teacher_steps: of that training.
        teacher_optimizer: likewise.
        methods: the rows.
        decays: further rows: CAST with these λ.
        budgets: further rows: CAST planned for these numbers of steps.
        steps: of every other student.
        learning_rate: of the students, at its highest.
        final_learning_rate: that it decays to by a cosine.
        warmup: share of the steps that it rises for.
        clip: the gradient's norm at most; 0 for any.
        decay: λ of AdamS.
        mask_every: steps between new masks.
        groups: scale groups of an output.
        eta: weight η of the teacher; the labels have 1 − η.
        sr_ste_decay: λ_w of SR-STE.
        ast_decay: λ of AST, reached after a quarter of the steps.
        compute: dtype of forward and backward passes.
    """

    setting: str = "tiny_shakespeare"
    corpus: CorpusConfig = CorpusConfig(batch_size=8)
    model: dict[str, Any] = field(default_factory=lambda: dict(SMALL_MODEL))
    weights: str = ""
    teacher_steps: int = 2400
    teacher_optimizer: OptimizerConfig = OptimizerConfig("adamw", 3e-3, 1e-4)
    methods: tuple[str, ...] = METHODS
    decays: tuple[float, ...] = (1e-4, 3e-4)
    budgets: tuple[int, ...] = (300, 900, 1200, 2400)
    steps: int = 600
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    warmup: float = 0.0
    clip: float = 0.0
    decay: float = 1e-3
    mask_every: int = 10
    groups: int = 2
    eta: float = 1 / 3
    sr_ste_decay: float = 2e-4
    ast_decay: float = 1e-4
    compute: str = "float32"

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of all methods."""
        swept = *map(decayed, self.decays), *map(trained_for, self.budgets)
        return *self.methods, *swept

    def rate(self) -> optax.Schedule:
        """Return the students' learning rate by the step."""
        return optax.warmup_cosine_decay_schedule(
            self.final_learning_rate if self.warmup else self.learning_rate,
            self.learning_rate,
            round(self.warmup * self.steps),
            self.steps,
            self.final_learning_rate,
        )

    def share(self) -> optax.Schedule:
        """Return AdamS's α by the step."""
        return optax.linear_schedule(0.0, 1.0, self.steps)

    @property
    def budget(self) -> float:
        """Return how far AdamS can shrink a weight."""
        return decay_budget(self.rate(), self.share(), self.steps)

    def network(self, vocabulary: int) -> Network:
        """Return the language model, computing in the configured dtype."""
        network = models.llama(vocabulary, **self.model)
        same = self.compute == "float32"
        return network if same else network.computing_in(self.compute)


PRESETS = {
    "small": Config(),
    "paper": Config(
        setting="llama2-7b",
        corpus=CorpusConfig("dolmino_llama2", 32_000, 4096, 0, 256),
        model={
            "width": 4096,
            "layers": 32,
            "heads": 32,
            "hidden": 11_008,
            "epsilon": 1e-5,
            "remat": True,
        },
        weights="llama2_7b",
        methods=("one_shot", "fixed_mask", "cast", "cast_no_scales", "dense"),
        decays=(),
        budgets=(),
        steps=7500,
        learning_rate=2e-5,
        final_learning_rate=2e-6,
        warmup=0.05,
        clip=1.0,
        decay=4e-7,
        compute="bfloat16",
    ),
}
