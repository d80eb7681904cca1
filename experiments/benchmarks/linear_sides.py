"""A step of `linear_distill` in a process: ``linear_sides.py jaxkd|liger MODE``.

The mode, of Liger alone, is ``eager`` or ``compile``. Both compute the loss, the
divergence of Jensen and Shannon plus the labels' cross-entropy, and its gradients by
the student's hidden states and head. Liger-Kernel lives in PyTorch's environment:

    torch-env/bin/pip install --no-deps liger-kernel
"""

from collections.abc import Callable

import numpy as np
from worker import serve

TOKENS, VOCABULARY, STUDENT, TEACHER = 4096, 32_000, 512, 1024


def arrays() -> tuple[list[np.ndarray], np.ndarray]:
    """Return hidden state and head (vocabulary, width) of each network, and labels."""
    rng = np.random.default_rng(0)
    shapes = [(n, w) for w in (STUDENT, TEACHER) for n in (TOKENS, VOCABULARY)]
    floats = [0.05 * rng.standard_normal(shape, np.float32) for shape in shapes]
    return floats, rng.integers(0, VOCABULARY, TOKENS)


def jaxkd_step() -> Callable[[], float]:
    """Return a step of jaxkd."""
    import jax
    import jax.numpy as jnp

    from jaxkd.kernels.linear_distill import jensen_shannon, linear_distill

    (h, w, th, tw), labels = arrays()
    weights = jnp.full(TOKENS, 1 / TOKENS)

    def loss(h, w, th, tw, labels):
        return linear_distill(
            *(h, w, th, tw, labels),
            divergence=jensen_shannon(0.5),
            weights=weights,
            label_weights=weights,
        ).loss

    inputs = [jnp.asarray(x) for x in (h, w.T, th, tw.T, labels)]
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))

    def run() -> float:
        value, gradients = jax.block_until_ready(step(*inputs))
        del gradients
        return float(value)

    return run


def liger_step(mode: str) -> Callable[[], float]:
    """Return a step of Liger-Kernel."""
    import torch  # pyright: ignore[reportMissingImports]
    from liger_kernel.chunked_loss import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearJSDLoss,
    )

    floats, labels = arrays()
    h, w, th, tw = (torch.from_numpy(x) for x in floats)
    target = torch.from_numpy(labels)
    h.requires_grad_()
    w.requires_grad_()
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1.0, weight_soft_loss=1.0, compiled=mode == "compile"
    )

    def run() -> float:
        h.grad = w.grad = None
        value = loss(h, w, th, tw, target, None, None)
        value.backward()
        return value.item()

    return run


def build(side: str, mode: str) -> Callable[[int], None]:
    """Return ``steps -> None``, which takes that many steps."""
    step = jaxkd_step() if side == "jaxkd" else liger_step(mode)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


if __name__ == "__main__":
    serve(build)
