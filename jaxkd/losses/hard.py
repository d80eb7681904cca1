"""What a student and a learned augmentation play for (Nix et al. 2023, HARD).

On an augmented image x̃ teacher and student disagree. The augmentation goes up that
disagreement as long as the teacher keeps its answer, the student goes down it. All
return one value an example.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, positive, probability
from jaxkd.losses.basics import as_float, check_same_shape, log_softmax
from jaxkd.losses.divergences import cross_entropy_loss, kd_loss, kl_divergence


@checked(temperature=positive)
def disagreement(
    teacher_logits: Float[Array, "*batch classes"],
    student_logits: Float[Array, "*batch classes"],
    temperature: float = 2.0,
) -> Float[Array, "*batch"]:
    """T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)), with a gradient by both sides.

    The value is `kd_loss`'s. There the teacher is a constant; here its logits are a
    function of the image, by which an augmentation is differentiated.

    Args:
        teacher_logits: z_t.
        student_logits: z_s.
        temperature: T > 0.

    Returns:
        The disagreement on each example.

    Raises:
        ValueError: shapes differ, or T is not above 0.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    log_t, log_s = (
        log_softmax(as_float(z), temperature) for z in (teacher_logits, student_logits)
    )
    return temperature**2 * kl_divergence(log_t, log_s)


@checked(temperature=positive, cap=positive)
def hard_augmenter_loss(
    clean_teacher_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    student_logits: Float[Array, "*batch classes"],
    temperature: float = 2.0,
    consistency: float = 1.0,
    cap: float = 8.0,
) -> tuple[Float[Array, "*batch"], dict[str, Float[Array, "*batch"]]]:
    """γ·T²·KL(p_t(x) ‖ p_t(x̃)) − min(T²·KL(p_t(x̃) ‖ p_s(x̃)), cap).

    After Nix, Burg, Sinz 2023, arXiv:2305.14890. The first term keeps the augmentation
    where the teacher's answer still means something, the cap ends its gain on an
    example on which the two disagree by that much already: the KL has no bound.

    Args:
        clean_teacher_logits: of the image x; a constant.
        teacher_logits: of the augmented image x̃.
        student_logits: of the augmented image x̃.
        temperature: T > 0.
        consistency: γ; 0 where the augmentation is to change the answer, as mixing.
        cap: of the disagreement on one example.

    Returns:
        The loss of each example, and its parts: the ``drift`` of the teacher's answer
        and the ``disagreement`` before the cap.

    Raises:
        ValueError: shapes differ, or T or the cap is not above 0.
    """
    drift = kd_loss(teacher_logits, clean_teacher_logits, temperature)
    found = disagreement(teacher_logits, student_logits, temperature)
    loss = consistency * drift - jnp.minimum(found, cap)
    return loss, {"drift": drift, "disagreement": found}


@checked(lam=probability, temperature=positive)
def hard_student_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    augmented_student_logits: Float[Array, "*batch classes"],
    augmented_teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"] | None = None,
    lam: float = 0.0,
    temperature: float = 2.0,
) -> tuple[Float[Array, "*batch"], dict[str, Float[Array, "*batch"]]]:
    """λ·CE(z_s(x), y) + (1 − λ)·½·[KD(x) + KD(x̃)], with `kd_loss`.

    After Nix, Burg, Sinz 2023, arXiv:2305.14890. On x̃ the student learns what the
    teacher says of x̃, not what it said of x. `jaxkd.papers.hard.hard` has any other
    method in KD's place.

    Args:
        student_logits: z_s of the images.
        teacher_logits: z_t of the images.
        augmented_student_logits: z_s of the augmented images.
        augmented_teacher_logits: z_t of the augmented images.
        labels: y; None without labels.
        lam: λ in [0, 1]; 0 needs no labels.
        temperature: T > 0.

    Returns:
        The loss of each example, and its parts ``clean``, ``augmented`` and, with
        λ > 0, ``cross_entropy``.

    Raises:
        ValueError: λ above 0 without labels, shapes differ, or T is not above 0.
    """
    if lam and labels is None:
        raise ValueError(
            f"lam is {lam} but labels is None: pass the labels, or lam=0 to learn from "
            "the teacher alone"
        )
    parts = {
        "clean": kd_loss(student_logits, teacher_logits, temperature),
        "augmented": kd_loss(
            augmented_student_logits, augmented_teacher_logits, temperature
        ),
    }
    loss = (1 - lam) * 0.5 * (parts["clean"] + parts["augmented"])
    if lam and labels is not None:
        parts["cross_entropy"] = cross_entropy_loss(student_logits, labels)
        loss = loss + lam * parts["cross_entropy"]
    return loss, parts
