"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass

from jaxkd.losses.diffusion import Weighting


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
        channels: of the U-Net at full resolution.
        multipliers: of its channels at each resolution.
        blocks: residual blocks at each resolution.
        attention: resolutions with attention.
        head_channels: features of one attention head.
        groups: of its GroupNorms.
        dropout: of the teacher.
        bfloat16: whether the U-Nets compute in bf16, and blocks are computed again in
            the backward pass.
        teacher_steps: of the U-Net teacher.
        teacher_rate: its learning rate.
        teacher_batch: its images in a step.
        student_steps: of its students.
        student_rate: their learning rate.
        student_batch: their trajectories in a step.
        warmup: steps in which both rates rise.
        average: decay of the moving average that samples are drawn from.
        delta: δ of the U-Nets' students.
        weighting: of their bootstrapping loss.
        guidance: weight of the teacher's classifier-free guidance; 1 for none.
        sampler_steps: of DDIM to compare with, the last as the reference.
        samples: of each sampler; 0 for as many as there are test images.
        student_seeds: most students of the U-Net teacher.
        classifier_epochs: of the classifier whose features are compared.
        mesh: a name of ``jaxkd.training.MESHES`` for the U-Nets.
    """

    settings: tuple[str, ...] = ("ring", "ablations", "mixture", "images")
    ring_steps: int = 3000
    ablation_steps: int = 2000
    mixture_steps: int = 4000
    analytic_samples: int = 1500
    dataset: str = "digits"
    channels: int = 24
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (4,)
    head_channels: int = 24
    groups: int = 8
    dropout: float = 0.0
    bfloat16: bool = False
    teacher_steps: int = 3000
    teacher_rate: float = 1e-3
    teacher_batch: int = 64
    student_steps: int = 1500
    student_rate: float = 3e-4
    student_batch: int = 64
    warmup: int = 200
    average: float = 0.995
    delta: float = 0.04
    weighting: Weighting = "inv_delta2"
    guidance: float = 1.0
    sampler_steps: tuple[int, ...] = (1, 2, 4, 50)
    samples: int = 0
    student_seeds: int = 3
    classifier_epochs: int = 40
    mesh: str = "one"


PRESETS = {
    "small": Config(),
    "paper": Config(
        settings=("images",),
        dataset="imagenet64",
        channels=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(32, 16, 8),
        head_channels=64,
        groups=32,
        dropout=0.1,
        bfloat16=True,
        teacher_steps=540_000,
        teacher_rate=3e-4,
        teacher_batch=2048,
        student_steps=100_000,
        student_rate=1e-4,
        student_batch=1024,
        warmup=1000,
        average=0.9999,
        delta=0.02,
        guidance=1.5,
        sampler_steps=(1, 10, 50),
        samples=50_000,
        student_seeds=1,
        classifier_epochs=90,
        mesh="fsdp",
    ),
}
