"""SigLIP: CLIP's two towers, taught pair by pair (Zhai et al. 2023, arXiv:2303.15343).

A logit is a scaled cosine and a bias, and its sigmoid is how probable it is that the
text belongs to the image, whatever the other texts are.
"""

from collections import abc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps, unchanged
from jaxkd.arguments import checked, natural, positive
from jaxkd.models.language.sequence import Sequence, token_ids
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.tokens import PatchEmbed, named_size
from jaxkd.models.vision.clip import CLIP, embedded, text_tables
from jaxkd.models.vision.clip_tower import MLP, Config, Tower, normal, projection
from jaxkd.network import Network

SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
}
"""Width, blocks, heads and the MLPs' width of either tower, by name."""


class AttentionPooling(nnx.Module):
    """One query, learnt, that gathers from all tokens, and an MLP (Zhai et al. 2022).

    "Scaling vision transformers", arXiv:2106.04560.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, start = config.width, normal(config.width**-0.5)
        self.heads = config.heads
        self.probe = nnx.Param(start(rngs.params(), (1, 1, width)))
        self.query, self.key, self.value, self.out = (
            Linear(width, width, axes=axes, kernel_init=start, rngs=rngs)
            for axes in (*3 * [("embed", "heads")], ("heads", "embed"))
        )
        self.norm = config.norm(rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch width"]:
        """Return what stands for all tokens of a row."""
        probe = self.probe[...].astype(x.dtype)
        query, key, value = (
            rearrange(part(y), "b l (h d) -> b l h d", h=self.heads)
            for part, y in ((self.query, probe), (self.key, x), (self.value, x))
        )
        query = jnp.broadcast_to(query, (len(x), *query.shape[1:]))
        gathered = jax.nn.dot_product_attention(query, key, value)
        x = self.out(rearrange(gathered, "b l h d -> b l (h d)"))
        return (x + self.mlp(self.norm(x)))[:, 0]


@checked()
class ImageTower(Tower):
    """The tower of images: patches alone, which a learnt query gathers from."""

    tap_prefix = "image."

    def __init__(
        self,
        config: Config,
        image_size: int,
        patch_size: int,
        channels_in: int,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, lambda rngs: unchanged, rngs=rngs)
        width = config.width
        self.patches = PatchEmbed(image_size, patch_size, channels_in, width, rngs=rngs)
        shape = self.patches.tokens, width
        self.positions = nnx.Param(normal(width**-0.5)(rngs.params(), shape))
        self.pool = AttentionPooling(config, rngs=rngs)

    def __call__(
        self, inputs: Mapping[str, Any], steps: Steps
    ) -> Float[Array, "batch features"]:
        """Return the embeddings.

        Raises:
            ValueError: images of another size.
        """
        x = self.patches(jnp.asarray(inputs["pixel_values"]))
        x = x + self.positions[...].astype(x.dtype)
        places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        x = self.encoded(x, Sequence(places, None), steps)
        return self.embedding(self.pool(x), steps)


@checked(pad=natural)
class TextTower(Tower):
    """The tower of texts, whose last place stands for them, be it padding."""

    tap_prefix = "text."

    def __init__(
        self,
        config: Config,
        features: int,
        vocabulary: int,
        context: int,
        pad: int,
        *,
        rngs: nnx.Rngs,
    ):
        width = config.width
        super().__init__(
            config,
            lambda rngs: projection(width, features, bias=True, rngs=rngs),
            rngs=rngs,
        )
        self.context, self.pad = context, pad
        self.embed, self.positions = text_tables(vocabulary, context, width, rngs=rngs)

    def __call__(
        self, inputs: Mapping[str, Any], steps: Steps
    ) -> Float[Array, "batch features"]:
        """Return the embeddings.

        Raises:
            ValueError: ids of another shape, or of more tokens than the context.
        """
        ids, mask = token_ids(inputs), inputs.get("attention_mask")
        if mask is not None:
            ids = jnp.where(jnp.asarray(mask) > 0, ids, self.pad)
            rest = max(self.context - ids.shape[1], 0)
            ids = jnp.pad(ids, ((0, 0), (0, rest)), constant_values=self.pad)
        x = embedded(ids, self.embed, self.positions)
        places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        x = self.encoded(x, Sequence(places, None), steps)
        return self.embedding(x[:, -1], steps)


class SigLIP(CLIP):
    """Both towers, and the temperature and bias of their similarities.

    It has the inputs, logits and taps of `jaxkd.models.vision.clip.CLIP`. The towers
    were taught on texts that padding fills up to the context, and every token sees it:
    with ``attention_mask`` the tokens where it is 0, and those that are missing, become
    padding; without, ``input_ids`` are read as they are.
    """

    def __init__(self, image: ImageTower, text: TextTower):
        super().__init__(image, text)
        self.logit_scale = nnx.Param(jnp.full(1, jnp.log(10.0)))
        self.logit_bias = nnx.Param(jnp.full(1, -10.0))

    def _logits(self, embeds: Mapping[str, Array]) -> Array | None:
        cosines = super()._logits(embeds)
        if cosines is None:
            return None
        return cosines + self.logit_bias[...].astype(cosines.dtype)


@checked(pad=natural, epsilon=positive)
@recorded
def siglip(
    image: str | abc.Sequence[int] = "base",
    text: str | abc.Sequence[int] = "base",
    *,
    image_size: int = 224,
    patch_size: int = 16,
    channels_in: int = 3,
    vocabulary: int = 32_000,
    context: int = 64,
    pad: int = 1,
    epsilon: float = 1e-6,
    scan: bool = True,
    remat: bool = False,
    implementation: str = "auto",
) -> Network:
    """Return SigLIP's two towers; without arguments ViT-B/16.

    Args:
        image: ``"base"``, ``"large"``, ``"so400m"``, or (width, blocks, heads, MLPs'
            width). The embedding that the towers share has the width.
        text: likewise.
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        channels_in: the image's channels.
        vocabulary: tokens of the text.
        context: tokens of every text, padding included.
        pad: the token that fills texts up, 0 in SigLIP 2.
        epsilon: of the norms.
        scan: whether the blocks are one compiled loop.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.

    Raises:
        ValueError: an unknown size, a width that the heads do not divide, or patches
            that do not tile the image.
    """

    def config(size: str | abc.Sequence[int]) -> Config:
        width, layers, heads, hidden = named_size(size, SIZES, "SigLIP")
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads")
        switches = False, "gelu_tanh", epsilon, scan, remat, implementation
        return Config(width, layers, heads, hidden, *switches)

    of_image, of_text = config(image), config(text)

    def build(rngs: nnx.Rngs) -> SigLIP:
        tokens = vocabulary, context, pad
        return SigLIP(
            ImageTower(of_image, image_size, patch_size, channels_in, rngs=rngs),
            TextTower(of_text, of_image.width, *tokens, rngs=rngs),
        )

    reads = "pixel_values", "input_ids", "attention_mask"
    return Network.from_nnx(build, reads=reads)
