"""CLIP: an image tower and a text tower whose embeddings meet.

Radford et al. 2021 (arXiv:2103.00020), with the weights of OpenAI and of OpenCLIP.
"""

from collections import abc
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, natural, own_check, positive
from jaxkd.models.language.sequence import Sequence, sequence, token_ids
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.tokens import PatchEmbed, named_size
from jaxkd.models.vision.clip_tower import Config, Tower, normal, projection
from jaxkd.network import Network
from jaxkd.sharding.axes import declare
from jaxkd.types import Outputs

IMAGE_SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
"""Width, blocks, heads and the MLPs' width of the image tower, by name."""

TEXT_SIZES = {"base": (512, 12, 8, 2048), "large": (768, 12, 12, 3072)}
"""Those of the text tower."""

LEGACY_EOS = 2
"""What the first configs say of the end's token, which then is the largest one."""


@checked()
class ImageTower(Tower):
    """The tower of images: patches and a class token, which stands for the image."""

    tap_prefix = "image."

    def __init__(
        self,
        config: Config,
        features: int,
        image_size: int,
        patch_size: int,
        channels_in: int,
        *,
        rngs: nnx.Rngs,
    ):
        width = config.width
        super().__init__(
            config, lambda rngs: projection(width, features, rngs=rngs), rngs=rngs
        )
        self.patches = PatchEmbed(
            image_size, patch_size, channels_in, width, use_bias=False, rngs=rngs
        )
        start = normal(width**-0.5)
        shapes = (width,), (1 + self.patches.tokens, width)
        self.prefix, self.positions = (
            nnx.Param(start(rngs.params(), shape)) for shape in shapes
        )
        self.embed_norm = config.norm(rngs=rngs)

    def __call__(
        self, inputs: Mapping[str, Any], steps: Steps
    ) -> Float[Array, "batch features"]:
        """Return the embeddings.

        Raises:
            ValueError: images of another size.
        """
        x = self.patches(jnp.asarray(inputs["pixel_values"]))
        prefix = self.prefix[...].astype(x.dtype)
        prefix = jnp.broadcast_to(prefix, (len(x), 1, len(prefix)))
        x = jnp.concatenate([prefix, x], axis=1) + self.positions[...].astype(x.dtype)
        places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        x = self.encoded(self.embed_norm(x), Sequence(places, None), steps)
        return self.embedding(x[:, 0], steps)


@checked(eos=natural)
class TextTower(Tower):
    """The tower of texts: causal, so that the text's last token stands for it."""

    tap_prefix = "text."

    def __init__(
        self,
        config: Config,
        features: int,
        vocabulary: int,
        context: int,
        eos: int,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            config,
            lambda rngs: projection(config.width, features, rngs=rngs),
            rngs=rngs,
        )
        self.eos = eos
        self.embed, self.positions = text_tables(
            vocabulary, context, config.width, rngs=rngs
        )

    def __call__(
        self, inputs: Mapping[str, Any], steps: Steps
    ) -> Float[Array, "batch features"]:
        """Return the embeddings.

        Raises:
            ValueError: ids of another shape, or of more tokens than the context.
        """
        ids = token_ids(inputs)
        x = embedded(ids, self.embed, self.positions)
        ends = ids if self.eos == LEGACY_EOS else ids == self.eos
        x = self.encoded(x, sequence(inputs, x.shape, None), steps)
        return self.embedding(x[jnp.arange(len(x)), ends.argmax(-1)], steps)


@checked()
def text_tables(
    vocabulary: int, context: int, width: int, *, rngs: nnx.Rngs
) -> tuple[nnx.Embed, nnx.Embed]:
    """Return the embeddings of tokens and of positions."""
    embed, positions = (
        nnx.Embed(
            count,
            width,
            embedding_init=normal(scale),
            embedding_metadata=axes,
            rngs=rngs,
        )
        for count, scale, axes in (
            (vocabulary, 0.02, declare("vocabulary", "embed")),
            (context, 0.01, {}),
        )
    )
    return embed, positions


@checked()
def embedded(
    ids: Int[Array, "texts length"], embed: nnx.Embed, positions: nnx.Embed
) -> Float[Array, "texts length width"]:
    """Return what tokens are at their places.

    Raises:
        ValueError: texts of more tokens than there are positions.
    """
    table, length = positions.embedding[...], ids.shape[1]
    if length > len(table):
        raise ValueError(
            f"input_ids has {length} tokens a row, but the model knows {len(table)} "
            "positions: cut the texts"
        )
    return embed.embedding[...][ids] + table[:length]


class CLIP(nnx.Module):
    """Both towers, and the temperature of their similarities.

    The logits are those of every text for an image, (images, texts); with inputs for
    one tower alone it runs alone, and they are None. Taps: ``image_embeds`` and
    ``text_embeds``, (batch, features) of length 1; of the towers ``image.`` and
    ``text.`` with ``embed``, ``block0`` … and ``final`` (after the last norm), (batch,
    tokens, width); ``block{i}.attn``, what a block's attention adds; and ``pooled``,
    ``final`` of the class token or of the text's last, and ``projected``, the embedding
    before its length is 1, (batch, features).
    """

    def __init__(self, image: Tower, text: Tower):
        self.image, self.text = image, text
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(1 / 0.07)))
        self.taps = ("image_embeds", "text_embeds", *image.taps, *text.taps)

    def __call__(
        self, inputs: Mapping[str, Any], *, steps: Steps | None = None
    ) -> Outputs:
        """Return logits (images, texts), and the features asked for.

        Args:
            inputs: ``pixel_values`` (images, height, width, channels); ``input_ids``
                (texts, length) and ``attention_mask``, 0 for padding; or one of both.
            steps: of the forward pass.

        Raises:
            ValueError: inputs for neither tower, taps of one without inputs, images of
                another size, or texts that are too long.
        """
        steps, embeds = steps or Steps(), {}
        for name, tower, key in (
            ("image", self.image, "pixel_values"),
            ("text", self.text, "input_ids"),
        ):
            own = [tap for tap in steps.taps if tap.startswith(name)]
            if key in inputs:
                embeds[name] = steps.tap(f"{name}_embeds", tower(inputs, steps))
            elif own:
                raise ValueError(f"tap {own[0]!r} needs {key}, got {sorted(inputs)}")
        if not embeds:
            raise ValueError(
                f"{type(self).__name__} reads pixel_values, input_ids or both, got "
                f"{sorted(inputs)}"
            )
        return steps.outputs(self._logits, embeds)

    def _logits(self, embeds: Mapping[str, Array]) -> Array | None:
        if len(embeds) < 2:
            return None
        scale = jnp.exp(self.logit_scale[...]).astype(embeds["image"].dtype)
        return scale * embeds["image"] @ embeds["text"].T


@checked(eos=natural, epsilon=positive, activation=own_check)
@recorded
def clip(
    image: str | abc.Sequence[int] = "base",
    text: str | abc.Sequence[int] = "base",
    *,
    features: int = 512,
    image_size: int = 224,
    patch_size: int = 32,
    channels_in: int = 3,
    vocabulary: int = 49_408,
    context: int = 77,
    eos: int = 49_407,
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu",
    epsilon: float = 1e-5,
    scan: bool = True,
    remat: bool = False,
    implementation: str = "auto",
) -> Network:
    """Return CLIP's two towers; without arguments ViT-B/32.

    Args:
        image: ``"base"``, ``"large"``, or (width, blocks, heads, MLPs' width).
        text: likewise.
        features: of the embedding that the towers share.
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        channels_in: the image's channels.
        vocabulary: tokens of the text.
        context: most tokens of a text.
        eos: token that ends a text, and stands for it; 2 for the largest token of each,
            as in OpenAI's folders.
        activation: of the MLPs: ``"quick_gelu"``, x·sigmoid(1.702·x), as OpenAI's, or
            ``"gelu"``.
        epsilon: of the norms.
        scan: whether the blocks are one compiled loop.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.

    Raises:
        ValueError: an unknown size or activation, a width that the heads do not divide,
            or patches that do not tile the image.
    """
    if activation not in ("quick_gelu", "gelu"):
        raise ValueError(
            f"activation must be 'quick_gelu' or 'gelu', got {activation!r}"
        )

    def config(size: str | abc.Sequence[int], named: Any, causal: bool) -> Config:
        width, layers, heads, hidden = named_size(size, named, "CLIP")
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads")
        switches = causal, activation, epsilon, scan, remat, implementation
        return Config(width, layers, heads, hidden, *switches)

    of_image, of_text = (
        config(image, IMAGE_SIZES, False),
        config(text, TEXT_SIZES, True),
    )

    def build(rngs: nnx.Rngs) -> CLIP:
        pixels = image_size, patch_size, channels_in
        return CLIP(
            ImageTower(of_image, features, *pixels, rngs=rngs),
            TextTower(of_text, features, vocabulary, context, eos, rngs=rngs),
        )

    reads = "pixel_values", "input_ids", "attention_mask"
    return Network.from_nnx(build, reads=reads)
