"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass

from experiments.common.configs import NetworkConfig
from jaxkd.losses.diffusion import Weighting


@dataclass(frozen=True)
class Training:
    """How long a U-Net is trained.

    Attributes:
        steps: of training.
        rate: the learning rate.
        batch: images, or trajectories, in a step.
    """

    steps: int
    rate: float
    batch: int


@dataclass(frozen=True)
class Config:
    """What is trained, and how.

    Attributes:
        settings: to run: ``ring``, ``ablations``, ``mixture``, ``images``.
        ring_steps: of a student of the ring.
        ablation_steps: of a student of the ring whose settings are varied.
        mixture_steps: of a student of the digits' mixture.
        analytic_samples: that distances are measured with.
        dataset: of the U-Nets, a name of ``images.DATASETS``.
        unet: the teacher's and the student's network.
        bfloat16: whether it computes in bf16.
        dropout: of the teacher in training.
        teacher: its training.
        student: its training.
        warmup: steps in which both rates rise.
        average: decay of the moving average that samples are drawn from.
        delta: δ of the U-Nets' students.
        weighting: of their bootstrapping loss.
        guidance: weight of the teacher's classifier-free guidance; 1 for none.
        sampler_steps: of DDIM to compare with, the last as the reference.
        samples: of each sampler; 0 for as many as there are test images.
        student_seeds: most students of the U-Net teacher.
        classifier_epochs: of the classifier whose features are compared.
    """

    settings: tuple[str, ...] = ("ring", "ablations", "mixture", "images")
    ring_steps: int = 3000
    ablation_steps: int = 2000
    mixture_steps: int = 4000
    analytic_samples: int = 1500
    dataset: str = "digits"
    unet: NetworkConfig = NetworkConfig(
        "unet",
        {
            "image_size": 8,
            "channels_in": 1,
            "channels": 24,
            "multipliers": (1, 2),
            "blocks": 1,
            "attention": (4,),
            "head_channels": 24,
            "groups": 8,
        },
    )
    bfloat16: bool = False
    dropout: float = 0.0
    teacher: Training = Training(3000, 1e-3, 64)
    student: Training = Training(1500, 3e-4, 64)
    warmup: int = 200
    average: float = 0.995
    delta: float = 0.04
    weighting: Weighting = "inv_delta2"
    guidance: float = 1.0
    sampler_steps: tuple[int, ...] = (1, 2, 4, 50)
    samples: int = 0
    student_seeds: int = 3
    classifier_epochs: int = 40


PRESETS = {
    "small": Config(),
    "paper": Config(
        settings=("images",),
        dataset="imagenet64",
        # Its defaults are ADM's. Blocks are computed again in the backward pass.
        unet=NetworkConfig("unet", {"remat": True}),
        bfloat16=True,
        dropout=0.1,
        teacher=Training(540_000, 3e-4, 2048),
        student=Training(100_000, 1e-4, 1024),
        warmup=1000,
        average=0.9999,
        delta=0.02,
        guidance=1.5,
        sampler_steps=(1, 10, 50),
        samples=50_000,
        student_seeds=1,
        classifier_epochs=90,
    ),
}
