"""Trained modules that bring a student's features to the teacher's shape.

They are trained with the student and, except for SimKD's, thrown away after. Maps are
(batch, height, width, channels), and ``rngs`` gives the first weights. Modules with
BatchNorm take a ``mask`` (batch,): an example whose mask is 0 is padding, and has no
influence on the others, the running averages or any gradient, whatever it holds.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.losses.basics import l2_normalize
from jaxkd.losses.features import vid_log_scale_init
from jaxkd.methods.modules.layers import (
    ABF,
    ConvNorm,
    ConvNormChain,
    Mask,
    MaskedBatchNorm,
    zero_padding,
)

leaky_relu = partial(nnx.leaky_relu, negative_slope=0.1)


@checked()
class Connector(ConvNorm):
    """A 1x1 convolution and BatchNorm, for AB, OFD, and aligning CWD and MGD.

    Heo et al. 2019, arXiv:1904.01866, Section 3.
    """

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        super().__init__(channels_in, channels_out, rngs=rngs)


class ConvRegressor(nnx.Module):
    """FitNets' regressor: one convolution to the teacher's shape, BatchNorm and ReLU.

    Romero et al. 2015, arXiv:1412.6550, Section 2.2, as later code builds it: a map
    twice the teacher's goes through a 3x3 kernel of stride 2, one half the teacher's
    through a transposed 4x4 of stride 2, and any other that is not smaller through an
    unpadded kernel of 1 + (student's − teacher's size), which is 1x1 for equal sizes.

    Args:
        student_shape: (batch, height, width, channels) of the student's map.
        teacher_shape: the same of the teacher's.

    Raises:
        ValueError: no rule fits the two sizes.
    """

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        *,
        rngs: nnx.Rngs,
    ):
        if len(student_shape) != 4 or len(teacher_shape) != 4:
            raise ValueError(
                "student_shape and teacher_shape must be (batch, height, width, "
                f"channels), got {student_shape} and {teacher_shape}"
            )
        _, *student, channels_in = student_shape
        _, *teacher, channels_out = teacher_shape
        pairs = list(zip(student, teacher, strict=True))
        if all(s == 2 * t for s, t in pairs):
            kernel, conv = (3, 3), partial(nnx.Conv, strides=2, padding=1)
        elif all(2 * s == t for s, t in pairs):
            # JAX counts padding on the output's side: 4 − 1 − 1 is PyTorch's 1.
            transposed = partial(nnx.ConvTranspose, transpose_kernel=True)
            kernel, conv = (4, 4), partial(transposed, strides=2, padding=2)
        elif all(s >= t for s, t in pairs):
            kernel = tuple(1 + s - t for s, t in pairs)
            conv = partial(nnx.Conv, padding="VALID")
        else:
            raise ValueError(
                f"student_shape is {student_shape} but teacher_shape is "
                f"{teacher_shape}: the student's height and width must be half the "
                "teacher's or not below them, so tap an earlier layer of the student "
                "or a later one of the teacher"
            )
        self.conv = conv(channels_in, channels_out, kernel, use_bias=False, rngs=rngs)
        self.norm = MaskedBatchNorm(channels_out, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Mask = None
    ) -> Float[Array, "batch out_height out_width out_channels"]:
        """Return a map of the teacher's shape."""
        return nnx.relu(self.norm(self.conv(zero_padding(x, mask)), mask))


class VIDRegressor(nnx.Module):
    """VID's predicted mean of the teacher's map, and its ``log_scale`` (channels,).

    Ahn et al. 2019, arXiv:1904.05835: three 1x1 convolutions with ReLU between. Give
    its output and ``log_scale`` to `jaxkd.losses.features.vid_loss`, and maps of
    different sizes to `jaxkd.losses.pooling.match_size` before it.

    Args:
        channels_in: the student's channels.
        channels_out: the teacher's.
        variance: where σ² starts.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        variance: float = 5.0,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = [channels_in] + 3 * [channels_out]
        self.convs = nnx.List(
            nnx.Conv(a, b, (1, 1), use_bias=False, rngs=rngs)
            for a, b in pairwise(sizes)
        )
        start = vid_log_scale_init(variance)
        self.log_scale = nnx.Param(jnp.full(channels_out, start, jnp.float32))

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width out_channels"]:
        """Return the predicted mean."""
        first, second, third = self.convs
        return third(nnx.relu(second(nnx.relu(first(x)))))


class Embed(nnx.Module):
    """A linear map of flattened features, for CC and CRD.

    Args:
        features: values of one flattened example.
        dim: of the embedding.
        normalize: whether embeddings are divided by their norm.
    """

    def __init__(
        self, features: int, dim: int = 128, *, normalize: bool = False, rngs: nnx.Rngs
    ):
        self.linear = nnx.Linear(features, dim, rngs=rngs)
        self.normalize = normalize

    def __call__(self, x: Float[Array, "batch *features"]) -> Float[Array, "batch dim"]:
        """Return one embedding an example."""
        embedding = self.linear(x.reshape(x.shape[0], -1))
        return l2_normalize(embedding) if self.normalize else embedding


class EmbedPair(nnx.Module):
    """An `Embed` of the student's features and one of the teacher's.

    Args:
        student_shape: (batch, ...) of the student's features.
        teacher_shape: the same of the teacher's.
        dim: of both embeddings.
    """

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        dim: int,
        rngs: nnx.Rngs,
    ):
        build = partial(Embed, dim=dim, rngs=rngs)
        self.student = build(math.prod(student_shape[1:]))
        self.teacher = build(math.prod(teacher_shape[1:]))

    def __call__(
        self,
        student: Float[Array, "batch *student"],
        teacher: Float[Array, "batch *teacher"],
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
        """Return the embeddings of both."""
        return self.student(student), self.teacher(teacher)


def _three_convs(sizes: Sequence[int], rngs: nnx.Rngs) -> nnx.Module:
    layers = []
    for a, b in pairwise(sizes):
        layers += [nnx.Conv(a, b, (3, 3), rngs=rngs), leaky_relu]
    return nnx.Sequential(*layers)


class Paraphraser(nnx.Module):
    """Factor transfer's autoencoder of the teacher's map, trained before the student.

    Kim, Park, Kwak 2018, arXiv:1802.04977, Section 3.1: three 3x3 convolutions to the
    factor and three back (a transposed convolution of stride 1 is a convolution), each
    with LeakyReLU 0.1.

    Args:
        channels: the teacher's.
        rate: the factor's channels over the teacher's.

    Raises:
        ValueError: the factor would have no channel.
    """

    def __init__(self, channels: int, rate: float = 0.5, *, rngs: nnx.Rngs):
        factor = round(channels * rate)
        if factor < 1:
            raise ValueError(
                f"rate = {rate} of {channels} channels leaves no factor: raise rate"
            )
        self.encoder = _three_convs((channels, channels, factor, factor), rngs)
        self.decoder = _three_convs((factor, factor, channels, channels), rngs)

    def encode(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width factor_channels"]:
        """Return the teacher's factor."""
        return self.encoder(x)

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Return the reconstruction, to be compared with ``x`` by `hint_loss`."""
        return self.decoder(self.encode(x))


@checked()
class Translator(ConvNormChain):
    """Factor transfer's encoder of the student's map: three 3x3 convs, BN, LeakyReLU.

    Kim, Park, Kwak 2018, arXiv:1802.04977, Section 3.2.

    Args:
        channels_in: the student's channels.
        channels_out: the teacher's factor's, round(channels · rate).
    """

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        sizes = (channels_in, channels_in, channels_out, channels_out)
        build = partial(ConvNorm, activation=leaky_relu, rngs=rngs)
        super().__init__(*(build(a, b, (3, 3)) for a, b in pairwise(sizes)))


class MGDGenerator(nnx.Module):
    """MGD's generator of the teacher's map from a masked one: conv3x3, ReLU, conv3x3.

    Yang et al. 2022, arXiv:2205.01529, Section 3.1.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.first = nnx.Conv(channels, channels, (3, 3), rngs=rngs)
        self.second = nnx.Conv(channels, channels, (3, 3), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Return the generated map."""
        return self.second(nnx.relu(self.first(x)))


@checked()
class SimKDProjector(ConvNormChain):
    """SimKD's bottleneck before the teacher's classifier; it stays at inference.

    Chen et al. 2022, arXiv:2203.14001, Section 3.2: 1x1 to teacher's/factor channels,
    3x3, 1x1 to the teacher's, each with BatchNorm and ReLU. Where the student's map is
    larger than the teacher's, give it after `jaxkd.losses.pooling.match_size`.

    Args:
        channels_in: the student's channels.
        channels_out: the teacher's.
        factor: how much narrower the bottleneck is.
    """

    def __init__(
        self, channels_in: int, channels_out: int, factor: int = 2, *, rngs: nnx.Rngs
    ):
        mid = max(1, channels_out // factor)
        build = partial(ConvNorm, activation=nnx.relu, rngs=rngs)
        super().__init__(
            build(channels_in, mid), build(mid, mid, (3, 3)), build(mid, channels_out)
        )


class ReviewFusion(nnx.Module):
    """Knowledge Review's chain of `ABF` from the deepest level to the shallowest.

    Chen et al. 2021, arXiv:2104.09044, Section 3.3. Levels are listed from shallow to
    deep; the last one usually is the pooled feature, as a 1x1 map.

    Args:
        student_channels: of each level.
        teacher_channels: of each level.
        mid: channels inside the chain; None takes the student's deepest, 512 at most.

    Raises:
        ValueError: the numbers of levels differ, or there is none.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        mid: int | None = None,
        rngs: nnx.Rngs,
    ):
        levels = len(student_channels)
        if not levels or levels != len(teacher_channels):
            raise ValueError(
                f"student_channels has {levels} levels but teacher_channels has "
                f"{len(teacher_channels)}: tap as many layers of both, at least one"
            )
        width = min(512, student_channels[-1]) if mid is None else mid
        self.levels = nnx.List(
            ABF(student, width, teacher, i < levels - 1, rngs=rngs)
            for i, (student, teacher) in enumerate(
                zip(student_channels, teacher_channels, strict=True)
            )
        )

    def __call__(
        self,
        features: Sequence[Float[Array, "batch ..."]],
        sizes: Sequence[tuple[int, int]] | None = None,
        mask: Mask = None,
    ) -> list[Float[Array, "batch _ _ _"]]:
        """Return one map a level, to compare with the teacher's by `hcl_loss`.

        Args:
            features: maps, or (batch, channels) for a pooled level.
            sizes: the teacher's (height, width) at each level; None keeps the
                student's.
            mask: 0 for padded examples.

        Raises:
            ValueError: the number of features or of sizes is not that of the levels.
        """
        targets = [None] * len(features) if sizes is None else list(sizes)
        if not len(features) == len(targets) == len(self.levels):
            raise ValueError(
                f"features has {len(features)} and sizes {len(targets)} entries, but "
                f"this ReviewFusion has {len(self.levels)} levels: give one for each"
            )
        outputs, residual = [], None
        for i in reversed(range(len(features))):
            x = features[i]
            x = x[:, None, None] if x.ndim == 2 else x
            output, residual = self.levels[i](x, residual, targets[i], mask)
            outputs.append(output)
        return outputs[::-1]
