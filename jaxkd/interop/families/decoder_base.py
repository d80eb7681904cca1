"""What the folders of all decoders of `jaxkd.models.llama` share.

A family says what is its own; sizes, rotations and the names of tensors are read and
written here.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Family, Source, require
from jaxkd.models.language.llama import llama
from jaxkd.models.language.llama_config import AttentionKind, Config
from jaxkd.models.language.rope import (
    LinearScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)

SLIDING, FULL = "sliding_attention", "full_attention"
"""A layer's type in ``layer_types``."""

OURS = "kv_heads", "head_dim", "rope_theta", "rope_scaling", "epsilon", "tied"
HOW = "scan", "remat", "implementation"
"""Arguments that every family has, and those that no config says."""

SCALING: Mapping[str, tuple[type, Mapping[str, str]]] = {
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (
        RopeScaling,
        {
            "factor": "factor",
            "low_frequency_factor": "low_freq_factor",
            "high_frequency_factor": "high_freq_factor",
            "original_length": "original_max_position_embeddings",
        },
    ),
    "yarn": (
        YarnScaling,
        {
            "factor": "factor",
            "original_length": "original_max_position_embeddings",
            "fast": "beta_fast",
            "slow": "beta_slow",
            "truncate": "truncate",
            "magnitude": "attention_factor",
        },
    ),
}
"""Type of the scaling -> its record, and the config's names of the record's fields."""

ATTENTION = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
}
MLP = {
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
HEAD_NORMS = {
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
}
NORMS = {
    "before": {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    },
    "after": {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
    "both": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}
"""Our names -> a layer's tensors."""

STATS = ("mlp/choice_bias",)
"""What no gradient trains."""


@checked()
def sizes(
    config: Mapping[str, Any], head_dim: int | None = None, attention_bias: bool = False
) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments that all decoders have, but rotations.

    Args:
        config: of ``config.json``.
        head_dim: where the config does not say, if not the width's share.
        attention_bias: that the config must have if it says so.
    """
    require(config, "attention_bias", attention_bias)
    require(config, "mlp_bias", False)
    return {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads"),
        "hidden": config["intermediate_size"],
        "head_dim": config.get("head_dim") or head_dim,
        "epsilon": config.get("rms_norm_eps", 1e-6),
        "tied": config.get("tie_word_embeddings", False),
    }


@checked()
def written_sizes(config: Config, architecture: str, model_type: str) -> dict[str, Any]:
    """Return what the configs of all decoders say, but rotations."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.hidden,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": config.tied,
    }


@checked()
def read_rope(config: Mapping[str, Any], theta: float = 10_000.0) -> Rope:
    """Return the rotations of a config.

    Args:
        config: before transformers 5 the base stood beside the scaling, and either
            could be left out.
        theta: base where the config does not say.

    Raises:
        ValueError: a kind of scaling that is not built.
    """
    given = {
        "rope_theta": config.get("rope_theta") or theta,
        "original_max_position_embeddings": config.get("max_position_embeddings"),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
    }
    given |= config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    require({"rope_type": kind}, "rope_type", "default", *SCALING)
    require(given, "partial_rotary_factor", 1.0)
    scaling = None
    if kind != "default":
        record, names = SCALING[kind]
        fields = {ours: given[name] for ours, name in names.items() if name in given}
        scaling = record(**fields)
    return Rope(given["rope_theta"], scaling)


@checked()
def written_rope(rope: Rope) -> dict[str, Any]:
    """Return rotations as configs have them, what has its default left out."""
    found = {"rope_theta": rope.theta, "rope_type": "default"}
    for kind, (record, names) in SCALING.items():
        if isinstance(rope.scaling, record):
            values = {name: getattr(rope.scaling, ours) for ours, name in names.items()}
            found |= {name: x for name, x in values.items() if x is not None}
            found["rope_type"] = kind
    return found


@checked()
def one_rope(
    config: Mapping[str, Any], theta: float = 10_000.0, head_dim: int | None = None
) -> dict[str, Any]:
    """Return the arguments of decoders with SiLU whose layers all turn alike.

    Args:
        config: of ``config.json``.
        theta: as in `read_rope`.
        head_dim: as in `sizes`.
    """
    require(config, "hidden_act", "silu")
    rope = read_rope(config, theta)
    return {
        **sizes(config, head_dim),
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
    }


@checked()
def written_one_rope(
    config: Config, architecture: str, model_type: str
) -> dict[str, Any]:
    """Return what the configs of such decoders say."""
    rope = config.attention[0].rope
    assert rope is not None, "of what `writes`"
    return {
        **written_sizes(config, architecture, model_type),
        "hidden_act": "silu",
        "rope_parameters": written_rope(rope),
    }


@checked()
def layer_types(
    config: Mapping[str, Any], sliding: Callable[[int], bool]
) -> list[bool]:
    """Return whether each layer has the window.

    Args:
        config: which says it by ``layer_types``, or leaves it to the family.
        sliding: the family's rule for a layer's number.

    Raises:
        ValueError: another type of layer.
    """
    layers = config["num_hidden_layers"]
    types = config.get("layer_types") or [
        SLIDING if sliding(layer) else FULL for layer in range(layers)
    ]
    for kind in types:
        require({"layer_types": kind}, "layer_types", SLIDING, FULL)
    return [kind == SLIDING for kind in types]


@checked()
def alike(kinds: Sequence[AttentionKind]) -> bool:
    """Return whether layers with a window are of one kind, and those without one."""
    return len({*kinds}) == len({kind.window is None for kind in kinds})


@checked()
def written_types(kinds: Sequence[AttentionKind]) -> list[str]:
    """Return ``layer_types``."""
    return [FULL if kind.window is None else SLIDING for kind in kinds]


@checked()
def only(arguments: Mapping[str, Any], *names: str) -> bool:
    """Return whether arguments of `jaxkd.models.llama` are the defaults but for some.

    Args:
        arguments: all of them.
        *names: that may differ, beside sizes, rotations and ties.
    """
    parameters = inspect.signature(llama).parameters.values()
    return all(
        arguments[p.name] == p.default
        for p in parameters
        if p.default is not p.empty and p.name not in (*OURS, *HOW, *names)
    )


@checked()
def tensors(
    arguments: Mapping[str, Any],
    linear: Mapping[str, Source] | None = None,
    mixture: Mapping[str, Source] | None = None,
) -> dict[str, Source]:
    """Return the source of every array of a decoder.

    Args:
        arguments: all of the constructor's.
        linear: of the layers' kernels, where they are not `ATTENTION` and `MLP`.
        mixture: of what layers with experts have in the place of `MLP`.
    """
    config = Config.of(**arguments)
    blocks = dict(linear or linear_sources(config, ATTENTION | MLP))
    norms = NORMS[config.norms] | (HEAD_NORMS if config.qk_norm else {})
    for ours, theirs in norms.items():
        blocks[f"{ours}/scale"] = layer_source(config, f"{theirs}.weight")
    biased = ["query", "key", "value"] if config.qkv_bias else []
    for ours in (*biased, *["out"] * config.out_bias):
        path = f"attention/{ours}"
        blocks[f"{path}/bias"] = layer_source(config, f"{ATTENTION[path]}.bias")
    if config.sinks:
        blocks["attention/sinks"] = layer_source(config, "self_attn.sinks")
    found = {}
    dense = config.dense_layers
    if dense:
        found |= stack("dense", blocks, 0, dense)
    if mixture is not None:
        blocks = {path: x for path, x in blocks.items() if not path.startswith("mlp/")}
        blocks |= mixture
    found |= stack("blocks", blocks, dense, config.layers - dense)
    found["params/embed/embedding"] = Source(("model.embed_tokens.weight",))
    found["params/norm/scale"] = Source(("model.norm.weight",))
    if not config.tied:
        found["params/head/kernel"] = Source(("lm_head.weight",), LINEAR)
    return found


@checked()
def stack(
    name: str, blocks: Mapping[str, Source], first: int, layers: int
) -> dict[str, Source]:
    """Return the sources of stacked blocks by their paths.

    Args:
        name: of the stack.
        blocks: the sources of all layers.
        first: layer of the stack.
        layers: in it.
    """
    return {
        f"{'stats' if path in STATS else 'params'}/{name}/{path}": source._replace(
            first=first, layers=layers
        )
        for path, source in blocks.items()
    }


@checked()
def layer_source(config: Config, name: str, layout: str = "", **others: Any) -> Source:
    """Return the source of an array that every layer has a tensor of."""
    names = (f"model.layers.{{}}.{name}",)
    return Source(names, layout, config.layers, **others)


@checked()
def linear_sources(config: Config, names: Mapping[str, str]) -> dict[str, Source]:
    """Return the sources of the layers' kernels, from our names -> theirs."""
    return {
        f"{ours}/kernel": layer_source(config, f"{theirs}.weight", LINEAR)
        for ours, theirs in names.items()
    }


@checked()
def family(
    architectures: Sequence[str],
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]],
    config: Callable[[Mapping[str, Any]], dict[str, Any]],
    writes: Callable[[Mapping[str, Any]], bool],
    tensors: Callable[[Mapping[str, Any]], dict[str, Source]] = tensors,
) -> Family:
    """Return a family of `jaxkd.models.llama`; see `Family`."""
    return Family(
        model="llama",
        architectures=tuple(architectures),
        arguments=arguments,
        config=config,
        tensors=tensors,
        renamed=((r"^model\.", ""),),
        # Some files repeat a tied head; old ones hold the rotations' frequencies.
        ignored=(r"lm_head\.weight", r".*\.rotary_emb\.inv_freq"),
        writes=writes,
    )
