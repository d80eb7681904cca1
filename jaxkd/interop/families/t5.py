"""T5 and T5 1.1 of `jaxkd.models.t5`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Family, Source, require

ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
GATED = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
PLAIN = {"up": "wi", "down": "wo"}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.t5`'s arguments for a config; `Family.head` says of ties."""
    require(config, "feed_forward_proj", "relu", "gated-gelu")
    # What transformers 5 says itself follows from the ties before.
    scaled = config.get("tie_word_embeddings", True)
    return {
        "vocabulary": config["vocab_size"],
        "width": config["d_model"],
        "layers": config["num_layers"],
        "decoder_layers": config.get("num_decoder_layers"),
        "heads": config["num_heads"],
        "head_dim": config["d_kv"],
        "hidden": config["d_ff"],
        "feed_forward": config.get("feed_forward_proj", "relu"),
        "buckets": config.get("relative_attention_num_buckets", 32),
        "max_distance": config.get("relative_attention_max_distance", 128),
        "epsilon": config.get("layer_norm_epsilon", 1e-6),
        "scaled": config.get("scale_decoder_outputs", scaled),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": arguments["vocabulary"],
        "d_model": arguments["width"],
        "num_layers": arguments["layers"],
        "num_decoder_layers": arguments["decoder_layers"] or arguments["layers"],
        "num_heads": arguments["heads"],
        "d_kv": arguments["head_dim"],
        "d_ff": arguments["hidden"],
        "feed_forward_proj": arguments["feed_forward"],
        "relative_attention_num_buckets": arguments["buckets"],
        "relative_attention_max_distance": arguments["max_distance"],
        "layer_norm_epsilon": arguments["epsilon"],
        "tie_word_embeddings": arguments["tied"] or arguments["scaled"],
        "scale_decoder_outputs": arguments["scaled"],
        # As T5 was trained: outputs start with the padding token.
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    layers = {"encoder": arguments["layers"], "decoder": arguments["decoder_layers"]}
    layers["decoder"] = layers["decoder"] or layers["encoder"]
    mlp = GATED if arguments["feed_forward"] == "gated-gelu" else PLAIN
    found = {"params/embed/embedding": Source(("shared.weight",))}
    for stack, count in layers.items():
        parts = ["attention", "mlp"]
        if stack == "decoder":
            parts.insert(1, "cross")
        for i, part in enumerate(parts):
            layer = f"{stack}.block.{{}}.layer.{i}"
            norm = Source((f"{layer}.layer_norm.weight",), layers=count)
            found[f"params/{stack}/blocks/{part}_norm/scale"] = norm
            inside, names = {
                "attention": ("SelfAttention", ATTENTION),
                "cross": ("EncDecAttention", ATTENTION),
                "mlp": ("DenseReluDense", mlp),
            }[part]
            for ours, theirs in names.items():
                found[f"params/{stack}/blocks/{part}/{ours}/kernel"] = Source(
                    (f"{layer}.{inside}.{theirs}.weight",), LINEAR, count
                )
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[f"params/{stack}/relative/embedding"] = Source((first,))
        norm = Source((f"{stack}.final_layer_norm.weight",))
        found[f"params/{stack}/norm/scale"] = norm
    if not arguments["tied"]:
        found["params/head/kernel"] = Source(("lm_head.weight",), LINEAR)
    return found


FAMILY = Family(
    model="t5",
    architectures=("T5ForConditionalGeneration",),
    arguments=arguments,
    config=config,
    tensors=tensors,
    # Some files repeat the embedding; the first ones hold a bias that was never used.
    ignored=(
        r"(encoder|decoder)\.embed_tokens\.weight",
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
    # transformers 5 writes that all are tied, and reads a head that is there.
    head="lm_head.weight",
)
