"""Factor transfer, with its paraphraser as part of the teacher."""

import jax
from flax import nnx

from jaxkd.adapters import NO_EDITS, abstract_module, merge_module, split_module
from jaxkd.arguments import checked, count, probability
from jaxkd.losses.attention import ft_loss
from jaxkd.losses.features import hint_loss
from jaxkd.methods.base import example_weights, from_loss, from_module
from jaxkd.methods.modules.projectors import Paraphraser, Translator
from jaxkd.network import Network
from jaxkd.types import Method, Outputs


@checked(rate=probability, channels=count)
def paraphrased(
    teacher: Network, tap: str, channels: int, *, rate: float = 0.5
) -> Network:
    """Return the teacher with a trainable paraphraser of one of its maps.

    Kim et al. 2018, arXiv:1802.04977. Its logits are the teacher's; its taps are the
    teacher's, ``factor``, the paraphraser's code (batch, height, width,
    channels·rate), and ``reconstruction``. Only the paraphraser is trained: stage 1 is
    ``distill(paraphrased(teacher, tap, channels), None, paraphraser_loss(tap), …)``,
    stage 2 takes the trained network as teacher of `ft`.

    Args:
        teacher: with its variables (`Network.with_variables`).
        tap: the teacher's map.
        channels: of that map.
        rate: the factor's channels over the map's.
    """

    def build(rngs: nnx.Rngs) -> Paraphraser:
        return Paraphraser(channels, rate, rngs=rngs)

    abstract = abstract_module(lambda: build(nnx.Rngs(0)))

    def init(key):
        params, _ = split_module(build(nnx.Rngs(key)))
        return {"params": params, "stats": {"teacher": teacher.init(key)}}

    def apply(variables, inputs, *, taps=(), edits=NO_EDITS, train=False, key=None):
        own = tuple(t for t in taps if t in teacher.taps)
        outputs, _ = teacher.apply(
            variables["stats"]["teacher"],
            inputs,
            taps=tuple(dict.fromkeys((*own, tap))),
            edits=edits,
        )
        outputs = jax.lax.stop_gradient(outputs)
        module = merge_module(abstract, variables["params"], {})
        factor = module.encode(outputs.features[tap])
        features = {
            **outputs.features,
            "factor": factor,
            "reconstruction": module.decoder(factor),
        }
        return Outputs(outputs.logits, {t: features[t] for t in taps}), variables

    taps = (*teacher.taps, "factor", "reconstruction")
    return Network(init, apply, taps, teacher.reads, axes=teacher.axes)


@checked()
def paraphraser_loss(tap: str) -> Method:
    """Return stage 1's loss: the squared error of the paraphraser's reconstruction.

    Args:
        tap: the teacher's map that `paraphrased` rebuilds.
    """
    return from_loss(
        lambda student, teacher, batch: hint_loss(
            student.features["reconstruction"], student.features[tap]
        ),
        name="reconstruction",
        student_taps=("reconstruction", tap),
    )


@checked()
def ft(tap: str, *, factor: str = "factor") -> Method:
    """Return factor transfer to a trained translator of the student's map.

    Kim et al. 2018, arXiv:1802.04977. The recipe's weight is 200.

    Args:
        tap: the student's map (batch, height, width, channels).
        factor: the tap of the `paraphrased` teacher.
    """

    def build(student, teacher, rngs):
        return Translator(
            student.features[tap].shape[-1],
            teacher.features[factor].shape[-1],
            rngs=rngs,
        )

    def loss(module, student, teacher, batch, key):
        mask = example_weights(batch, student)
        translated = module(student.features[tap], mask=mask)
        return ft_loss(translated, teacher.features[factor])

    return from_module(
        build, loss, name="ft", student_taps=(tap,), teacher_taps=(factor,)
    )
