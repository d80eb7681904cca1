"""Masked autoencoders made of a vision transformer (He et al. 2021, arXiv:2111.06377).

The encoder is a network of ours, or of the user's, that is edited as it runs: `visible`
drops the hidden patches' tokens where they have just been embedded, `mean_pooled` puts
the patches' mean in the class token's place. `masked_autoencoder` adds the decoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.adapters import NO_EDITS, Edits, unchanged
from jaxkd.arguments import checked, count, natural, positive
from jaxkd.checks import unknown_name
from jaxkd.losses.masked_images import restore_tokens, visible_tokens
from jaxkd.models.parts.tokens import grid_positions, layer_norm, linear, normal
from jaxkd.models.vision.vit import Block
from jaxkd.network import Network
from jaxkd.networks.freezing import all_weights, train_only
from jaxkd.types import Inputs, Outputs, Variables


def _edited(edits: Edits, tap: str, edit: Callable[[Array], Array]) -> Edits:
    """Return the caller's edits, and after them one more at a tap."""
    before = edits.get(tap, unchanged)
    return {**edits, tap: lambda x: edit(before(x))}


def _check_tap(network: Network, tap: str) -> None:
    if tap not in network.taps:
        raise ValueError(unknown_name("tap", tap, network.taps))


@checked(prefix=natural)
def visible(network: Network, tap: str = "embed", *, prefix: int = 1) -> Network:
    """Return a network that runs on the visible patches' tokens alone.

    It has the same variables, and reads ``ids_keep`` (batch, visible) too, from
    `methods.mae`; of a batch without it, it is the network itself. Of a teacher's first
    blocks: ``visible(teacher.segment(None, "block17"))``.

    Args:
        network: a transformer that treats its tokens alike, such as `jaxkd.models.vit`.
        tap: where the tokens are embedded, with their positions.
        prefix: tokens before the patches', such as a class token.

    Raises:
        ValueError: no such tap.
    """
    _check_tap(network, tap)

    def apply(variables, inputs, *, edits: Edits = NO_EDITS, **kwargs):
        own: Inputs = {name: inputs[name] for name in network.reads if name in inputs}
        if len(network.reads) == 1:
            own = own[network.reads[0]]
        if "ids_keep" in inputs:
            ids = inputs["ids_keep"]
            edits = _edited(edits, tap, lambda x: visible_tokens(x, ids, prefix))
        return network.apply(variables, own, edits=edits, **kwargs)

    reads = (*network.reads, "ids_keep")
    return replace(network, apply=apply, reads=reads, spec=None, module=None, cuts=())


@checked(prefix=natural)
def mean_pooled(network: Network, tap: str, *, prefix: int = 1) -> Network:
    """Return a network that classifies by the mean of its patches' tokens.

    He et al. 2021, arXiv:2111.06377, Appendix A.1: for fine-tuning, mean, norm, head.
    At the tap there is the mean alone, (batch, 1, width).

    Args:
        network: such as `jaxkd.models.vit`, which classifies by its first token.
        tap: the last block's output.
        prefix: tokens before the patches'.

    Raises:
        ValueError: no such tap.
    """
    _check_tap(network, tap)

    def mean(x: Float[Array, "batch tokens width"]) -> Float[Array, "batch 1 width"]:
        return x[:, prefix:].mean(1, keepdims=True)

    def apply(variables, inputs, *, edits: Edits = NO_EDITS, **kwargs):
        return network.apply(
            variables, inputs, edits=_edited(edits, tap, mean), **kwargs
        )

    return replace(network, apply=apply, spec=None, module=None, cuts=())


@checked(side=count, prefix=natural)
def fixed_positions(network: Network, side: int, *, prefix: int = 1) -> Network:
    """Return a vision transformer whose positions are fixed sines and cosines.

    They are among its ``stats`` (see `networks.freezing.train_only`).

    Args:
        network: `jaxkd.models.vit`, or any with a parameter ``positions`` (1, tokens,
            width).
        side: patches in a row.
        prefix: tokens before the patches'.

    Raises:
        ValueError: from ``init``, another number of tokens.
    """

    def init(key: PRNGKeyArray) -> Variables:
        variables = network.init(key)
        learnt = variables["params"]["positions"]
        fixed = grid_positions(side, learnt.shape[-1], prefix)[None]
        if fixed.shape != learnt.shape:
            raise ValueError(
                f"side {side} makes positions {fixed.shape}, but the network's are "
                f"{learnt.shape}: give the number of patches in its rows"
            )
        params = {**variables["params"], "positions": jnp.asarray(fixed)}
        return {**variables, "params": params}

    return train_only(replace(network, init=init), r"(?!positions$).*")


class Decoder(nnx.Module):
    """Tokens of visible patches, with one for each hidden patch, through a few blocks.

    Args:
        width_in: of the encoder's tokens.
        side: patches in a row.
        values: of a patch, pixels times channels.
        size: width, blocks and heads.
        epsilon: of the norms.
    """

    def __init__(
        self,
        width_in: int,
        side: int,
        values: int,
        size: tuple[int, int, int],
        epsilon: float,
        *,
        rngs: nnx.Rngs,
    ):
        width, depth, heads = size
        self.side, self.width = side, width
        self.embed = linear(width_in, width, axes=("embed", "hidden"), rngs=rngs)
        self.mask_token = nnx.Param(normal(rngs.params(), (width,)))
        self.blocks = nnx.List(
            Block(width, heads, 0.0, epsilon=epsilon, rngs=rngs) for _ in range(depth)
        )
        self.norm = layer_norm(width, epsilon, rngs=rngs)
        self.head = linear(width, values, axes=("embed", "vocabulary"), rngs=rngs)

    def __call__(
        self,
        inputs: Mapping[str, Float[Array, "..."] | Int[Array, "..."]],
    ) -> Float[Array, "batch patches values"]:
        """Return the pixels of all patches.

        Args:
            inputs: the encoder's ``tokens`` and ``ids_restore``.
        """
        x = self.embed(inputs["tokens"])
        x = restore_tokens(x, self.mask_token[...], inputs["ids_restore"])
        x = x + grid_positions(self.side, self.width, 1).astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))[:, 1:]


@checked(width=count, side=count, values=count, epsilon=positive)
def masked_autoencoder(
    encoder: Network,
    width: int,
    side: int,
    values: int,
    decoder: tuple[int, int, int] = (512, 8, 16),
    *,
    epsilon: float = 1e-6,
) -> Network:
    """Return a network that paints an image's hidden patches, for `methods.mae`.

    It reads what the encoder does and ``ids_restore``. Its logits and its tap
    ``pixels`` are (batch, patches, values); the other taps are the encoder's.

    Args:
        encoder: of an image's visible patches to tokens (batch, 1 + visible, width),
            such as ``visible(fixed_positions(models.vit(...), side).segment(None,
            "final"))``.
        width: of its tokens.
        side: patches in a row.
        values: of a patch, pixels times channels.
        decoder: width (a multiple of 4), blocks and heads.
        epsilon: of the decoder's norms.

    Raises:
        ValueError: a decoder's width that its heads or 4 do not divide.
    """
    own_width, _, heads = decoder
    if own_width % heads or own_width % 4:
        raise ValueError(
            "decoder is (width, blocks, heads), the width a multiple of the heads and "
            f"of 4, got {decoder}"
        )
    painter = Network.from_nnx(
        lambda rngs: Decoder(width, side, values, decoder, epsilon, rngs=rngs),
        reads=("tokens", "ids_restore"),
    )

    def init(key: PRNGKeyArray) -> Variables:
        keys = jax.random.split(key)
        parts = encoder.init(keys[0]), painter.init(keys[1])
        return _joined(*parts)

    def apply(variables, inputs, *, taps=(), edits=NO_EDITS, train=False, key=None):
        outputs, seen = encoder.apply(
            _part(variables, "encoder"),
            {name: inputs[name] for name in encoder.reads if name in inputs},
            taps=tuple(tap for tap in taps if tap != "pixels"),
            edits=edits,
            train=train,
            key=key,
        )
        told = {"tokens": outputs.logits, "ids_restore": inputs["ids_restore"]}
        painted, made = painter.apply(_part(variables, "decoder"), told, train=train)
        found = {**outputs.features, "pixels": painted.logits}
        features = {tap: found[tap] for tap in taps}
        return Outputs(painted.logits, features), _joined(seen, made)

    axes = {
        (name, *path): found
        for name, part in (("encoder", encoder), ("decoder", painter))
        for path, found in part.axes.items()
    }
    return Network(
        init,
        apply,
        (*encoder.taps, "pixels"),
        (*encoder.reads, "ids_restore"),
        axes=axes,
    )


def encoder_of(variables: Variables) -> Variables:
    """Return the encoder's variables, to fine-tune it or to teach with it.

    Args:
        variables: of a `masked_autoencoder` whose encoder has `fixed_positions`.
    """
    return all_weights(_part(variables, "encoder"))


def _part(variables: Variables, name: str) -> Variables:
    return {kind: tree[name] for kind, tree in variables.items()}


def _joined(encoder: Variables, decoder: Variables) -> Variables:
    return {
        kind: {"encoder": encoder[kind], "decoder": decoder[kind]}
        for kind in ("params", "stats")
    }
