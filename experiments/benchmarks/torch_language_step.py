"""The distillation step of `language_step` in PyTorch, ``eager`` or ``compile``.

The loss is TRL's ``generalized_jsd_loss`` written out: the mixture of the two
log-distributions by log-sum-exp, and two Kullback-Leibler divergences.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from language_step_cases import BATCH, LENGTH, STUDENT, TEACHER
from torch_decoding import Llama
from worker import serve


class NoCache:
    """Training keeps no keys and values."""

    def update(self, layer: int, key, value, places):
        """Return them as they are."""
        return key, value


def logits(model: Llama, ids):
    """Return the logits of every token."""
    places = torch.arange(ids.shape[1])
    x, cos, sin = model.embed(ids), model.cos[places], model.sin[places]
    for block in model.blocks:
        x = block(x, NoCache(), places, cos, sin, None)
    return model.head(model.norm(x))


def jensen_shannon(student, teacher, beta: float = 0.5):
    """Return the mean over tokens of the generalised divergence."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    log_m = torch.logsumexp(
        torch.stack([log_q + math.log(1 - beta), log_p + math.log(beta)]), 0
    )
    to_teacher = F.kl_div(log_m, log_p, reduction="none", log_target=True)
    to_student = F.kl_div(log_m, log_q, reduction="none", log_target=True)
    return (beta * to_teacher + (1 - beta) * to_student).sum(-1).mean()


def build(name: str, kind: str) -> Callable[[int], None]:
    """Return ``steps -> None``, which trains for that many."""
    torch.manual_seed(0)
    student, teacher = Llama(STUDENT), Llama(TEACHER).eval()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-4, weight_decay=1e-4)
    ids = torch.randint(0, STUDENT.vocabulary, (BATCH, LENGTH))

    def loss():
        with torch.no_grad():
            taught = logits(teacher, ids)
        return jensen_shannon(logits(student, ids), taught)

    if kind == "compile":
        loss = torch.compile(loss)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    return run


if __name__ == "__main__":
    serve(build)
