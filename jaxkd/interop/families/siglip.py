"""SigLIP of `jaxkd.models.siglip`; SigLIP 2 of images of one size is the same."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import (
    LINEAR,
    Family,
    Source,
    linear_sources,
    norm_sources,
    require,
)
from jaxkd.interop.families.clip import tower_sources
from jaxkd.interop.families.vit import patch_sources, require_square
from jaxkd.models.parts.tokens import named_size
from jaxkd.models.vision.siglip import SIZES

SIZE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
"""What makes up a tower's size, and what it is if not given."""

GEMMA = 256_000
"""Tokens of SigLIP 2's vocabulary, whose padding is 0, which configs do not say."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.siglip`'s arguments for a config."""
    image, text = (config.get(key) or {} for key in ("vision_config", "text_config"))
    for tower in (image, text):
        require(tower, "hidden_act", "gelu_pytorch_tanh")
    require(text, "layer_norm_eps", image.get("layer_norm_eps", 1e-6))
    require(image, "vision_use_head", True)
    require_square(image)
    sizes = [tuple(x.get(key, of) for key, of in SIZE.items()) for x in (image, text)]
    width = text.get("projection_size") or sizes[1][0]
    require({"projection_size": width}, "projection_size", sizes[0][0])
    vocabulary = text.get("vocab_size", 32_000)
    return {
        "image": sizes[0],
        "text": sizes[1],
        "image_size": image.get("image_size", 224),
        "patch_size": image.get("patch_size", 16),
        "channels_in": image.get("num_channels", 3),
        "vocabulary": vocabulary,
        "context": text.get("max_position_embeddings", 64),
        "pad": text.get("pad_token_id", 0 if vocabulary == GEMMA else 1),
        "epsilon": image.get("layer_norm_eps", 1e-6),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    sizes = {
        tower: dict(
            zip(SIZE, named_size(arguments[tower], SIZES, "SigLIP"), strict=True)
        )
        for tower in ("image", "text")
    }
    shared = {
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": arguments["epsilon"],
    }
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            **sizes["image"],
            **shared,
            "image_size": arguments["image_size"],
            "patch_size": arguments["patch_size"],
            "num_channels": arguments["channels_in"],
            "vision_use_head": True,
        },
        "text_config": {
            "model_type": "siglip_text_model",
            **sizes["text"],
            **shared,
            "projection_size": sizes["image"]["hidden_size"],
            "vocab_size": arguments["vocabulary"],
            "max_position_embeddings": arguments["context"],
            "pad_token_id": arguments["pad"],
        },
    }


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    image, text, head = (
        "vision_model.embeddings",
        "text_model.embeddings",
        "vision_model.head",
    )
    found = {
        "logit_scale": Source(("logit_scale",)),
        "logit_bias": Source(("logit_bias",)),
        "image/positions": Source((f"{image}.position_embedding.weight",)),
        **patch_sources(
            "image/patches/projection",
            f"{image}.patch_embedding",
            arguments["patch_size"],
        ),
        "text/embed/embedding": Source((f"{text}.token_embedding.weight",)),
        "text/positions/embedding": Source((f"{text}.position_embedding.weight",)),
        **linear_sources("text/embedder", "text_model.head"),
        **norm_sources("image/norm", "vision_model.post_layernorm"),
        **norm_sources("text/norm", "text_model.final_layer_norm"),
        "image/pool/probe": Source((f"{head}.probe",)),
        **linear_sources("image/pool/out", f"{head}.attention.out_proj"),
        **norm_sources("image/pool/norm", f"{head}.layernorm"),
        **linear_sources("image/pool/mlp/fc1", f"{head}.mlp.fc1"),
        **linear_sources("image/pool/mlp/fc2", f"{head}.mlp.fc2"),
    }
    for which, part in enumerate(("query", "key", "value")):
        ours, theirs = f"image/pool/{part}", f"{head}.attention.in_proj"
        share = which, 3
        found[f"{ours}/kernel"] = Source((f"{theirs}_weight",), LINEAR, share=share)
        found[f"{ours}/bias"] = Source((f"{theirs}_bias",), share=share)
    for tower, body in (("image", "vision_model"), ("text", "text_model")):
        layers = named_size(arguments[tower], SIZES, "SigLIP")[1]
        found |= tower_sources(tower, body, layers)
    return {f"params/{path}": source for path, source in found.items()}


FAMILY = Family(
    model="siglip",
    architectures=("SiglipModel",),
    arguments=arguments,
    config=config,
    tensors=tensors,
    ignored=(r"(vision|text)_model\.embeddings\.position_ids",),
)
