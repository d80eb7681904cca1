"""OFA-KD: exit branches and an enhanced target class, for unlike architectures."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import abstract_module, merge_module
from jaxkd.arguments import checked, positive
from jaxkd.losses.divergences import ofa_loss
from jaxkd.methods.base import (
    example_weights,
    from_loss,
    from_module,
    pair_taps,
    summed,
)
from jaxkd.methods.modules.exits import exit_branch
from jaxkd.types import Method, MethodVariables, Outputs

Build = Callable[[Outputs, Outputs, nnx.Rngs], nnx.Module]


@checked(temperature=positive)
def ofakd(
    taps: Sequence[str],
    *,
    gamma: float | Sequence[float] = 1.0,
    temperature: float = 1.0,
    branch_weight: float = 1.0,
    stages_after: Sequence[int] | None = None,
    width: int | None = None,
) -> Method:
    """Return one-for-all distillation: logits of all stages learn the teacher's last.

    Hao et al. 2023, arXiv:2310.19444. Each tapped stage of the student has
    a trained `exit_branch` (maps: separable convolutions; tokens: patch merging and
    transformer blocks; vectors: a perceptron). The loss is `ofa_loss` of the student's
    logits and the sum, not the mean, of the branches'. All weights are 1, also
    cross-entropy's. The teacher may be of any architecture: only its logits are read.
    With CutMix and Mixup the target is the larger share's class.

    Args:
        taps: the student's stages, shallow to deep; the paper takes four.
        gamma: γ of at least 1: one, or one a tap and then the logits'. The paper tunes
            it by pair, usually 1.1 to 1.4.
        temperature: T > 0; the paper's is 1.
        branch_weight: of the branches' sum.
        stages_after: how many stages follow each tap, which is how deep its branch
            is; None for taps of consecutive stages up to the last.
        width: of the branches; None reads the tap ``pooled`` and takes the paper's:
            for maps the wider of both networks', else the student's.

    Raises:
        ValueError: numbers of γ or ``stages_after`` that are not the taps', or
            features that no branch takes.
    """
    pair_taps(taps, None)
    gammas = [gamma] * (len(taps) + 1) if isinstance(gamma, int | float) else gamma
    if len(gammas) != len(taps) + 1:
        raise ValueError(
            f"gamma has {len(gammas)} entries for {len(taps)} taps: give one number, "
            "or one a tap and then the logits'"
        )
    pooled = ("pooled",) if width is None else ()

    def branches(module, student, teacher, batch, key):
        mask = example_weights(batch, student)
        losses = [
            ofa_loss(logits, teacher.logits, batch["label"], g, temperature)
            for logits, g in zip(
                _run(module, student, taps, mask), gammas[:-1], strict=True
            )
        ]
        return sum(losses[1:], losses[0])

    exits = from_module(
        _builder(taps, stages_after, width),
        branches,
        name="ofa_exits",
        student_taps=tuple(dict.fromkeys((*taps, *pooled))),
        teacher_taps=pooled,
    )
    final = from_loss(
        lambda student, teacher, batch: ofa_loss(
            student.logits, teacher.logits, batch["label"], gammas[-1], temperature
        ),
        name="ofa_logits",
    )

    def loss(variables, student, teacher, batch, *rest):
        of_exits, (state, found) = exits.loss(variables, student, teacher, batch, *rest)
        of_logits, (_, more) = final.loss(
            {"params": {}, "state": {}}, student, teacher, batch, *rest
        )
        total = summed((1.0, of_logits), (branch_weight, of_exits))
        return total, (state, {"ofakd": total, **more, **found})

    return exits._replace(loss=loss)


@checked()
def exit_logits(
    variables: MethodVariables,
    student: Outputs,
    teacher: Outputs,
    taps: Sequence[str],
    *,
    stages_after: Sequence[int] | None = None,
    width: int | None = None,
) -> list[Float[Array, "batch classes"]]:
    """Return the logits of every exit branch that `ofakd` has trained, in evaluation.

    Args:
        variables: the method's.
        student: outputs in evaluation, with the features that the method reads.
        teacher: likewise; only their shapes matter.
        taps: as given to `ofakd`.
        stages_after: likewise.
        width: likewise.
    """
    build = _builder(taps, stages_after, width)
    abstract = abstract_module(lambda: build(student, teacher, nnx.Rngs(0)))
    module = merge_module(abstract, variables["params"], variables["state"])
    module.eval()
    return _run(module, student, taps)


def _builder(
    taps: Sequence[str], stages_after: Sequence[int] | None, width: int | None
) -> Build:
    """Return what makes the branches for the outputs' shapes."""
    after = range(len(taps))[::-1] if stages_after is None else stages_after
    if len(after) != len(taps):
        raise ValueError(
            f"stages_after has {len(after)} entries for {len(taps)} taps: give one "
            "a tap"
        )

    def build(student, teacher, rngs):
        def own_width(shape: tuple[int, ...]) -> int:
            if width is not None:
                return width
            mine = student.features["pooled"].shape[-1]
            if len(shape) < 4:
                return mine
            return max(mine, teacher.features["pooled"].shape[-1])

        shapes = [student.features[tap].shape for tap in taps]
        return nnx.List(
            exit_branch(
                shape, student.logits.shape[-1], own_width(shape), left, rngs=rngs
            )
            for shape, left in zip(shapes, after, strict=True)
        )

    return build


def _run(
    module: Any, student: Outputs, taps: Sequence[str], mask: Array | None = None
) -> list[Float[Array, "batch classes"]]:
    return [
        branch(student.features[tap], mask)
        for branch, tap in zip(module, taps, strict=True)
    ]
