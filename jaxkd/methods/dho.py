"""Dual-head optimisation: labels and a teacher's soft labels train a head each."""

from jaxkd.arguments import checked, positive
from jaxkd.losses.dual_head import check_share, dho_terms
from jaxkd.methods.base import example_weights, summed
from jaxkd.methods.masks import masked
from jaxkd.networks.dual_head import CE_TAP, KD_TAP
from jaxkd.types import Method


@checked(temperature=positive)
def dho(lam: float = 0.5, temperature: float = 2.0) -> Method:
    """Return the loss of a `networks.dual_head` student on labelled and other data.

    Kang et al. 2025, arXiv:2505.07675, and the objective of ActiveKD, Kang et al. 2025,
    arXiv:2506.00910. A batch holds both kinds of examples, told apart by
    ``batch["labelled"]`` (batch,) of booleans, as `data.semi_supervised_batches` makes
    them; labels of unlabelled examples are not read.

    Args:
        lam: λ in [0, 1], the weight of cross-entropy.
        temperature: T > 0 of distillation.

    Raises:
        ValueError: from the loss, a batch without ``labelled``.
    """
    check_share("lam", lam)

    def init(key, student, teacher, batch):
        return {"params": {}, "state": {}}

    def loss(variables, student, teacher, batch, key, step):
        if "labelled" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}, but dho() needs labelled, a boolean "
                "an example: make batches with data.semi_supervised_batches"
            )
        parts = dho_terms(
            student.features[CE_TAP],
            student.features[KD_TAP],
            teacher.logits,
            batch["label"],
            batch["labelled"],
            temperature=temperature,
            weights=example_weights(batch, student),
        )
        loss = summed(
            (lam, parts["ce"]),
            (1 - lam, parts["kd_labelled"]),
            (1 - lam, parts["kd_unlabelled"]),
        )
        return loss, (variables["state"], {"dho": loss, **parts})

    return masked(Method(init, loss, student_taps=(CE_TAP, KD_TAP)))
