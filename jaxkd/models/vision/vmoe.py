"""V-MoE: a vision transformer with a mixture of experts in place of MLPs.

Riquelme et al. 2021 (arXiv:2106.05974).
"""

from collections.abc import Sequence

from flax import nnx

from jaxkd.arguments import checked, count, fraction, positive
from jaxkd.models.parts.moe import Mixture, MoE
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.routers import RouterName
from jaxkd.models.parts.tokens import named_size
from jaxkd.models.vision.vit import SIZES, ViT, check_heads
from jaxkd.network import Network


@checked(experts=count, k=count, every=count, epsilon=positive, drop_path=fraction)
@recorded
def vmoe(
    size: str | Sequence[int] = "base",
    classes: int = 1000,
    *,
    experts: int = 8,
    k: int = 2,
    every: int = 1,
    router: RouterName = "softmax_of_top",
    image_size: int = 224,
    patch_size: int = 16,
    drop_path: float = 0.0,
    channels_in: int = 3,
    hidden: int | None = None,
    epsilon: float = 1e-6,
) -> Network:
    """Return a vision transformer whose blocks hold mixtures of experts.

    It has the taps of `vit`, and ``block{i}.router``, the logits (batch, tokens,
    experts) of each router. Train it with `methods.expert_balance` beside the loss, or
    experts may die.

    Args:
        size: as in `vit`.
        classes: logits.
        experts: of each mixture.
        k: that a token goes through.
        every: how many blocks there are to one mixture, the last of each; the paper
            takes 2, m2mKD 1.
        router: a name of `jaxkd.models.parts.routers.ROUTERS`; V-MoE's is
            ``"top_of_softmax"``, fastmoe's and m2mKD's the default.
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        drop_path: rate of stochastic depth at the last block, rising linearly from 0.
        channels_in: the image's channels.
        hidden: width of an expert; None for four times that of the tokens.
        epsilon: of the norms.

    Raises:
        ValueError: as `vit`; an unknown router, or k above the number of experts.
    """
    sizes = named_size(size, SIZES, "ViT")
    width, depth, _ = sizes
    check_heads(sizes)
    own = 4 * width if hidden is None else hidden
    mixture = Mixture(own, experts, k, router)
    mixed = [i for i in range(depth) if (i + 1) % every == 0]

    def build(rngs: nnx.Rngs) -> nnx.Module:
        def mlp(block: int) -> nnx.Module | None:
            return MoE(width, mixture, rngs=rngs) if block in mixed else None

        return ViT(
            (width, depth, sizes[2]),
            classes,
            image_size,
            patch_size,
            distilled=False,
            drop_path=drop_path,
            channels_in=channels_in,
            hidden=hidden,
            epsilon=epsilon,
            mlp=mlp,
            rngs=rngs,
        )

    taps = {f"block{i}.router": f"blocks.{i}.mlp.router" for i in mixed}
    return Network.from_nnx(build, taps=taps)
