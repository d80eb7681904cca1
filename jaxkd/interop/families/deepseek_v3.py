"""DeepSeek-V3 of `jaxkd.models.llama`: latent attention and a grouped router."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import Source, require
from jaxkd.interop.families.decoder_base import (
    MLP,
    family,
    layer_source,
    linear_sources,
    only,
    read_rope,
    sizes,
    tensors,
    written_rope,
    written_sizes,
)
from jaxkd.interop.families.mixture_base import ROUTED, expert_sources
from jaxkd.models.language.llama_config import Config, Latent, Multipliers
from jaxkd.models.language.rope import Rope, YarnScaling
from jaxkd.models.parts.moe import Mixture
from jaxkd.models.parts.recorded import as_record

ARCHITECTURE = "DeepseekV3ForCausalLM"
ATTENTION = {
    "attention/down": "self_attn.kv_a_proj_with_mqa",
    "attention/up": "self_attn.kv_b_proj",
    "attention/out": "self_attn.o_proj",
}
QUERIES = {
    True: {
        "attention/query_down": "self_attn.q_a_proj",
        "attention/query": "self_attn.q_b_proj",
    },
    False: {"attention/query": "self_attn.q_proj"},
}
"""With and without a latent of the queries."""

NEXT_TOKENS = r"model\.layers\.61\..*"
"""What predicts tokens after the next, behind the 61 layers; transformers leaves it out
likewise."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    require(config, "hidden_act", "silu")
    require(config, "norm_topk_prob", True)
    require(config, "topk_method", "noaux_tc")
    require(config, "scoring_func", "sigmoid")
    require(config, "moe_layer_freq", 1)
    rope, latent = _rope(config), _latent(config)
    hidden = config["moe_intermediate_size"]
    return {
        **sizes(config),
        "kv_heads": None,
        "head_dim": None,
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "latent": latent,
        "multipliers": Multipliers(scores=_scores(config, latent)),
        "mixture": _mixture(
            hidden,
            config["n_routed_experts"],
            config["num_experts_per_tok"],
            groups=config["n_group"],
            top_groups=config["topk_group"],
            scale=config["routed_scaling_factor"],
            shared=hidden * config["n_shared_experts"],
        ),
        "dense_layers": config["first_k_dense_replace"],
    }


def _mixture(hidden: int, experts: int, k: int, **others: Any) -> Mixture:
    return Mixture(
        *(hidden, experts, k),
        router="sigmoid_of_top",
        activation="swiglu",
        use_bias=False,
        choice_bias=True,
        **others,
    )


def _latent(config: Mapping[str, Any]) -> Latent:
    return Latent(
        rank=config["kv_lora_rank"],
        plain=config["qk_nope_head_dim"],
        turned=config["qk_rope_head_dim"],
        value=config["v_head_dim"],
        query_rank=config.get("q_lora_rank"),
        interleaved=config.get("rope_interleave", True),
    )


def _stretched(scaling: Mapping[str, Any], mscale: Any) -> float:
    """Return YaRN's magnitude for one of its two numbers."""
    return 0.1 * mscale * math.log(scaling["factor"]) + 1


def _rope(config: Mapping[str, Any]) -> Rope:
    """Return the rotations, whose magnitude is of two numbers."""
    rope, given = read_rope(config), _given(config)
    own, shared = given.get("mscale"), given.get("mscale_all_dim")
    scaling = rope.scaling
    if not isinstance(scaling, YarnScaling) or scaling.magnitude:
        return rope
    if not own or not shared:
        return rope
    magnitude = _stretched(given, own) / _stretched(given, shared)
    return replace(rope, scaling=replace(scaling, magnitude=magnitude))


def _given(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _scores(config: Mapping[str, Any], latent: Latent) -> float | None:
    """Return the scores' scale where YaRN changes it."""
    given = _given(config)
    if not given.get("mscale_all_dim"):
        return None
    stretched = _stretched(given, given["mscale_all_dim"])
    return latent.key_dim**-0.5 * stretched**2


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    rope, mixture, latent = config.attention[0].rope, config.mixture, config.latent
    assert rope is not None, "of what `writes`"
    assert mixture is not None
    assert latent is not None
    written = written_rope(rope)
    if config.multipliers.scores is not None:
        stretched = math.sqrt(config.multipliers.scores * latent.key_dim**0.5)
        written["mscale_all_dim"] = 10 * (stretched - 1) / math.log(written["factor"])
    return {
        **written_sizes(config, ARCHITECTURE, "deepseek_v3"),
        "hidden_act": "silu",
        "rope_parameters": written,
        "rope_interleave": latent.interleaved,
        "kv_lora_rank": latent.rank,
        "q_lora_rank": latent.query_rank,
        "qk_nope_head_dim": latent.plain,
        "qk_rope_head_dim": latent.turned,
        "qk_head_dim": latent.key_dim,
        "v_head_dim": latent.value,
        "moe_intermediate_size": mixture.hidden,
        "n_routed_experts": mixture.experts,
        "n_shared_experts": mixture.shared // mixture.hidden,
        "num_experts_per_tok": mixture.k,
        "n_group": mixture.groups,
        "topk_group": mixture.top_groups,
        "norm_topk_prob": True,
        "routed_scaling_factor": mixture.scale,
        "first_k_dense_replace": config.dense_layers,
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether DeepSeek-V3 has these arguments."""
    mixture = as_record(arguments["mixture"], Mixture)
    if mixture is None or arguments["latent"] is None:
        return False
    config, own = Config.of(**arguments), ("latent", "mixture", "dense_layers")
    rope, scores = config.attention[0].rope, config.multipliers.scores
    stretched = isinstance(rope and rope.scaling, YarnScaling)
    return (
        only(arguments, *own, "multipliers")
        and config.multipliers == Multipliers(scores=scores)
        and (scores is None or stretched)
        and mixture.shared > 0
        and mixture.shared % mixture.hidden == 0
        and mixture
        == _mixture(
            *(mixture.hidden, mixture.experts, mixture.k),
            groups=mixture.groups,
            top_groups=mixture.top_groups,
            scale=mixture.scale,
            shared=mixture.shared,
        )
    )


@checked()
def sources(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    config = Config.of(**arguments)
    assert config.latent is not None
    low = config.latent.query_rank is not None
    linear = linear_sources(config, ATTENTION | QUERIES[low] | MLP)
    linear["attention/norm/scale"] = layer_source(
        config, "self_attn.kv_a_layernorm.weight"
    )
    if low:
        linear["attention/query_norm/scale"] = layer_source(
            config, "self_attn.q_a_layernorm.weight"
        )
    mixture = expert_sources(config, "mlp")
    mixture["mlp/choice_bias"] = layer_source(
        config, "mlp.gate.e_score_correction_bias"
    )
    shared = {f"mlp/shared/{x}": f"mlp.shared_experts.{y}" for x, y in ROUTED.items()}
    return tensors(arguments, linear, mixture | linear_sources(config, shared))


_FAMILY = family([ARCHITECTURE], arguments, config, writes, sources)
FAMILY = _FAMILY._replace(ignored=(*_FAMILY.ignored, NEXT_TOKENS))
