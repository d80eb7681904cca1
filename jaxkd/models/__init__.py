"""The zoo: every model returns `Outputs` and names its taps in its docstring."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.models.diffusion.dit import dit as dit
from jaxkd.models.diffusion.unet import unet as unet
from jaxkd.models.graph.gnn import gat as gat
from jaxkd.models.graph.gnn import gcn as gcn
from jaxkd.models.graph.gnn import graphsage as graphsage
from jaxkd.models.graph.gnn import node_mlp as node_mlp
from jaxkd.models.language.bert import bert as bert
from jaxkd.models.language.gpt2 import gpt2 as gpt2
from jaxkd.models.language.llama import llama as llama
from jaxkd.models.language.mamba2 import mamba2 as mamba2
from jaxkd.models.language.modernbert import modernbert as modernbert
from jaxkd.models.language.t5 import t5 as t5
from jaxkd.models.vision.clip import clip as clip
from jaxkd.models.vision.cnn import cnn as cnn
from jaxkd.models.vision.convnext import convnext as convnext
from jaxkd.models.vision.dinov2 import dinov2 as dinov2
from jaxkd.models.vision.lenet import lenet as lenet
from jaxkd.models.vision.mixer import mlp_mixer as mlp_mixer
from jaxkd.models.vision.mixer import resmlp as resmlp
from jaxkd.models.vision.mlp import mlp as mlp
from jaxkd.models.vision.mobilenet import mobilenet_v2 as mobilenet_v2
from jaxkd.models.vision.nasbench201 import nasbench201 as nasbench201
from jaxkd.models.vision.one import one_cnn as one_cnn
from jaxkd.models.vision.resnet import cifar_resnet as cifar_resnet
from jaxkd.models.vision.resnet import imagenet_resnet as imagenet_resnet
from jaxkd.models.vision.shufflenet import shufflenet_v1 as shufflenet_v1
from jaxkd.models.vision.shufflenet import shufflenet_v2 as shufflenet_v2
from jaxkd.models.vision.siglip import siglip as siglip
from jaxkd.models.vision.swin import swin as swin
from jaxkd.models.vision.vgg import vgg as vgg
from jaxkd.models.vision.vit import vit as vit
from jaxkd.models.vision.vmoe import vmoe as vmoe
from jaxkd.models.vision.wide_resnet import wide_resnet as wide_resnet
from jaxkd.network import Network
from jaxkd.registry import constructors

MODELS = constructors(globals(), Network)
"""Model constructors by name, for configurations and exported folders."""


@checked()
def create(
    name: str,
    constructors: Mapping[str, Callable[..., Network]] = MODELS,
    /,
    **arguments: Any,
) -> Network:
    """Return the zoo's model of that name.

    Args:
        name: a key of the constructors.
        constructors: `MODELS`, or more.
        **arguments: passed to its constructor.

    Raises:
        ValueError: no model has that name.
    """
    if name not in constructors:
        raise ValueError(unknown_name("model", name, constructors))
    return constructors[name](**arguments)
