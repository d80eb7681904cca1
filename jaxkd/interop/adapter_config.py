"""PEFT's description of a LoRA adapter, adapter_config.json, read and written.

Anything that would change what the model computes, and is not built here, is refused by
its name; what only says how training began, or where the base was, is passed over.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxkd.arguments import checked
from jaxkd.files import check_plain
from jaxkd.networks.lora import LoraConfig
from jaxkd.untrusted import json_file

CONFIG = "adapter_config.json"
LARGEST, HIGHEST = 2**20, 2**16
"""Bytes of the file, and the rank that may be asked for."""

PASSED_OVER = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "peft_version", "eva_config", "megatron_core"),
    # Which layers there are, the tensors tell.
    *("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform"),
    # PEFT reads it from the layer.
    *("fan_in_fan_out", "qalora_group_size", "ensure_weight_tying"),
}
"""Keys that change nothing of a trained adapter."""

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""PEFT's name of what a model is for, by the end of its architecture's name."""


class AdapterConfig(NamedTuple):
    """What counts of an adapter_config.json.

    Attributes:
        rank: of the adapters.
        alpha: each counts alpha/rank.
        ranks: of some modules, by their whole names or the ends of them.
        alphas: likewise.
        rank_stabilised: whether each counts alpha/√rank instead.
        dora: whether there are magnitudes.
        dropout: in training.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    dora: bool
    dropout: float

    def of(self, module: str) -> tuple[int, float]:
        """Return the rank and alpha of a module."""
        return (
            _by_name(self.ranks, module, self.rank),
            _by_name(self.alphas, module, self.alpha),
        )


def _by_name(values: Mapping[str, Any], module: str, default: Any) -> Any:
    found = (value for end, value in values.items() if _ends(module, end))
    return next(found, default)


def _ends(module: str, end: str) -> bool:
    """Return whether a pattern is a module's name, or the last parts of it."""
    if end.startswith("^"):
        return module == end[1:]
    return f".{module}".endswith(f".{end}")


@checked()
def read_config(folder: Path) -> AdapterConfig:
    """Return what a folder's adapter_config.json says.

    Args:
        folder: of PEFT.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is damaged, or of an adapter that is not built here.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: give a folder that PEFT has written"
        )
    said = json_file(path, LARGEST)
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds a {type(said).__name__}, not an object")
    check_plain(said, str(path))
    if (kind := said.pop("peft_type", None)) != "LORA":
        raise ValueError(
            f"{path} has peft_type {kind!r:.80}, but adapters here are LORA"
        )

    def take(key: str, default: Any, good: Any, what: str) -> Any:
        value = said.pop(key, default)
        if not good(value):
            raise ValueError(f"{path} has {key} = {value!r:.80}, which is no {what}")
        return value

    def patterns(key: str, good: Any, what: str) -> dict[str, Any]:
        given = take(key, {}, lambda x: x is None or isinstance(x, dict), "object")
        found = {}
        for name, value in (given or {}).items():
            plain = name.replace("\\.", ".")
            # An expression of someone else's may take for ever to match.
            if not re.fullmatch(r"\^?[\w.-]+", plain) or not good(value):
                raise ValueError(
                    f"{path} has {name!r:.80}: {value!r:.80} in {key}, which is no "
                    f"module's name and {what}"
                )
            found[plain] = value
        return found

    found = AdapterConfig(
        rank=take("r", 8, _is_rank, "rank"),
        alpha=float(take("lora_alpha", 8, _is_positive, "positive number")),
        ranks=patterns("rank_pattern", _is_rank, "rank"),
        alphas={
            name: float(alpha)
            for name, alpha in patterns(
                "alpha_pattern", _is_positive, "positive number"
            ).items()
        },
        rank_stabilised=take("use_rslora", False, _is_bool, "boolean"),
        dora=take("use_dora", False, _is_bool, "boolean"),
        dropout=float(take("lora_dropout", 0.0, _is_share, "share below 1")),
    )
    # Others write adapters of weights that they have changed first.
    take(
        "init_lora_weights",
        True,
        lambda x: x in (True, False, "gaussian", "eva"),
        ("initial value of which the base stays as it was"),
    )
    take("bias", "none", lambda x: x == "none", "kind that is read: it must be 'none'")
    for key, value in said.items():
        if value and key not in PASSED_OVER:
            raise ValueError(
                f"{path} has {key} = {value!r:.80}, which jaxkd does not build: merge "
                "the adapter into its model where it was made"
            )
    return found


@checked()
def described(
    config: LoraConfig,
    adapters: Mapping[str, tuple[int, float]],
    modules: Collection[str],
    *,
    architecture: str,
    transposed: bool,
    base: str | None,
) -> dict[str, Any]:
    """Return what to write to adapter_config.json.

    Args:
        config: of the adapters; its ranks and alphas by pattern are not read.
        adapters: rank and alpha of each module that has one.
        modules: all that could have one.
        architecture: of the model.
        transposed: whether its layers hold their weights as GPT-2's do.
        base: name or folder of the model.
    """
    ranks = {name: rank for name, (rank, _) in adapters.items()}
    alphas = {name: _plain(alpha) for name, (_, alpha) in adapters.items()}
    tasks = (task for end, task in TASKS.items() if architecture.endswith(end))
    return {
        "peft_type": "LORA",
        "task_type": next(tasks, None),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _plain(config.alpha),
        "rank_pattern": _patterns(ranks, config.rank),
        "alpha_pattern": _patterns(alphas, config.alpha),
        "target_modules": _shortened(adapters, modules),
        "use_rslora": config.rank_stabilised,
        "use_dora": config.dora,
        "lora_dropout": config.dropout,
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "bias": "none",
        "modules_to_save": None,
    }


def _patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return the values by module that are not the default, by last names if one."""
    groups = defaultdict(set)
    for name, value in values.items():
        groups[_last(name)].add(value)
    return {
        (_last(name) if len(groups[_last(name)]) == 1 else name): value
        for name, value in values.items()
        if value != default
    }


def _shortened(adapters: Collection[str], modules: Collection[str]) -> list[str]:
    """Return the modules that have adapters, by last names where all of those do."""
    every, own = (Counter(map(_last, names)) for names in (modules, adapters))
    return sorted(
        {_last(n) if every[_last(n)] == own[_last(n)] else n for n in adapters}
    )


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _plain(number: int | float) -> int | float:
    """Return a whole number as an integer."""
    return int(number) if float(number).is_integer() else float(number)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not _is_bool(value) and 1 <= value <= HIGHEST


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1
