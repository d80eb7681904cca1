"""SimKD: the student reuses the teacher's classifier behind a projector."""

from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import NO_EDITS, abstract_module, merge_module, split_module
from jaxkd.arguments import checked, count
from jaxkd.losses.features import hint_loss
from jaxkd.losses.pooling import adaptive_average_pool, match_size
from jaxkd.methods.base import from_loss
from jaxkd.methods.modules.projectors import SimKDProjector
from jaxkd.network import Network
from jaxkd.types import Method, Outputs


@checked(channels=count, factor=count)
def simkd_student(
    student: Network,
    tap: str,
    channels: int,
    teacher_shape: tuple[int, int, int],
    classifier: tuple[Float[Array, "channels classes"], Float[Array, "classes"]],
    *,
    factor: int = 2,
) -> Network:
    """Return the student with a projector in front of the teacher's classifier.

    Chen et al. 2022, arXiv:2203.14001. Its logits are the teacher's classifier on the
    projected, pooled map, in training and at inference; its taps are the student's and
    ``projected``. Student and projector are trained, the classifier is not.

    Args:
        student: any network with a map.
        tap: the student's last map (batch, height, width, channels).
        channels: of that map.
        teacher_shape: (height, width, channels) of the teacher's last map; a larger
            student map is pooled to it.
        classifier: the teacher's last linear layer, (kernel, bias).
        factor: by which the projector's inner channels are fewer than the teacher's.
    """
    height, width, teacher_channels = teacher_shape

    def build(rngs: nnx.Rngs) -> SimKDProjector:
        return SimKDProjector(channels, teacher_channels, factor, rngs=rngs)

    abstract = abstract_module(lambda: build(nnx.Rngs(0)))

    def init(key):
        own = student.init(key)
        params, stats = split_module(build(nnx.Rngs(key)))
        kernel, bias = classifier
        return {
            "params": {"student": own["params"], "projector": params},
            "stats": {
                "student": own["stats"],
                "projector": stats,
                "classifier": {"kernel": kernel, "bias": bias},
            },
        }

    def apply(variables, inputs, *, taps=(), edits=NO_EDITS, train=False, key=None):
        params, stats = variables["params"], variables["stats"]
        outputs, changed = student.apply(
            {"params": params["student"], "stats": stats["student"]},
            inputs,
            taps=tuple(dict.fromkeys((tap, *(t for t in taps if t in student.taps)))),
            edits=edits,
            train=train,
            key=key,
        )
        x = outputs.features[tap]
        if x.shape[1] >= height:
            x = adaptive_average_pool(x, (height, width))
        module = merge_module(abstract, params["projector"], stats["projector"])
        module.train() if train else module.eval()
        projected = module(x)
        head = stats["classifier"]
        logits = projected.mean((1, 2)) @ head["kernel"] + head["bias"]
        features = {**outputs.features, "projected": projected}
        stats = {
            **stats,
            "student": changed["stats"],
            "projector": split_module(module)[1],
        }
        return (
            Outputs(logits, {t: features[t] for t in taps}),
            {**variables, "stats": stats},
        )

    taps = (*student.taps, "projected")
    return Network(init, apply, taps, student.reads, axes=student.axes)


@checked()
def simkd(teacher_tap: str) -> Method:
    """Return SimKD's only loss: projected map against the teacher's, squared error.

    The student must be made by `simkd_student`. There is no cross-entropy and no KL.

    Args:
        teacher_tap: the teacher's last map; a larger one is pooled to the student's.
    """

    def loss(student, teacher, batch):
        projected, target = match_size(
            student.features["projected"], teacher.features[teacher_tap]
        )
        return hint_loss(projected, target)

    return from_loss(
        loss,
        name="simkd",
        student_taps=("projected",),
        teacher_taps=(teacher_tap,),
    )
