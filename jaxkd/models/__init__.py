"""The zoo: every model returns `Outputs` and names its taps in its docstring."""

from collections.abc import Callable
from typing import Any

from jaxkd.checks import unknown_name
from jaxkd.models.bert import bert
from jaxkd.models.class_maps import with_class_maps
from jaxkd.models.clip import clip
from jaxkd.models.cnn import cnn
from jaxkd.models.convnext import convnext
from jaxkd.models.dit import dit
from jaxkd.models.dual_head import dual_head
from jaxkd.models.ensemble import ensemble, member, with_logits
from jaxkd.models.gnn import gat, gcn, graphsage, node_mlp
from jaxkd.models.gpt2 import gpt2
from jaxkd.models.lenet import lenet
from jaxkd.models.llama import llama
from jaxkd.models.mamba2 import mamba2
from jaxkd.models.mixer import mlp_mixer, resmlp
from jaxkd.models.mlp import mlp
from jaxkd.models.mobilenet import mobilenet_v2
from jaxkd.models.nasbench201 import nasbench201
from jaxkd.models.one import one_cnn
from jaxkd.models.resnet import cifar_resnet, imagenet_resnet
from jaxkd.models.shufflenet import shufflenet_v1, shufflenet_v2
from jaxkd.models.swiftkv import swiftkv_llama
from jaxkd.models.swin import swin
from jaxkd.models.t5 import t5
from jaxkd.models.unet import unet
from jaxkd.models.vgg import vgg
from jaxkd.models.vit import vit
from jaxkd.models.wide_resnet import wide_resnet
from jaxkd.types import Network

MODELS: dict[str, Callable[..., Network]] = {
    "bert": bert,
    "cifar_resnet": cifar_resnet,
    "clip": clip,
    "cnn": cnn,
    "convnext": convnext,
    "dit": dit,
    "gat": gat,
    "gcn": gcn,
    "gpt2": gpt2,
    "graphsage": graphsage,
    "imagenet_resnet": imagenet_resnet,
    "lenet": lenet,
    "llama": llama,
    "mamba2": mamba2,
    "mlp": mlp,
    "mlp_mixer": mlp_mixer,
    "mobilenet_v2": mobilenet_v2,
    "nasbench201": nasbench201,
    "node_mlp": node_mlp,
    "one_cnn": one_cnn,
    "resmlp": resmlp,
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "swiftkv_llama": swiftkv_llama,
    "swin": swin,
    "t5": t5,
    "unet": unet,
    "vgg": vgg,
    "vit": vit,
    "wide_resnet": wide_resnet,
}
"""Model constructors by name, for configurations and exported folders."""


def create(name: str, **arguments: Any) -> Network:
    """Return the zoo's model of that name.

    Args:
        name: a key of `MODELS`.
        **arguments: passed to its constructor.

    Raises:
        ValueError: no model has that name.
    """
    if name not in MODELS:
        raise ValueError(unknown_name("model", name, MODELS))
    return MODELS[name](**arguments)


__all__ = [
    "MODELS",
    "bert",
    "cifar_resnet",
    "clip",
    "cnn",
    "convnext",
    "create",
    "dit",
    "dual_head",
    "ensemble",
    "gat",
    "gcn",
    "gpt2",
    "graphsage",
    "imagenet_resnet",
    "lenet",
    "mamba2",
    "member",
    "mlp",
    "mlp_mixer",
    "mobilenet_v2",
    "nasbench201",
    "node_mlp",
    "one_cnn",
    "resmlp",
    "shufflenet_v1",
    "shufflenet_v2",
    "swiftkv_llama",
    "swin",
    "t5",
    "unet",
    "vgg",
    "vit",
    "wide_resnet",
    "with_class_maps",
    "with_logits",
]
