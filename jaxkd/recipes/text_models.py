"""The language models of a recipe: read, checked against one another, and written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxkd import data
from jaxkd.arguments import checked
from jaxkd.hub import model_folder
from jaxkd.interop import load_pretrained, save_adapter, save_pretrained
from jaxkd.network import Network
from jaxkd.networks import LoraConfig, merged, with_lora
from jaxkd.networks.freezing import all_weights, train_only
from jaxkd.types import Variables

LONGEST = 1024
"""Tokens of a row, where neither recipe nor models say."""


@checked()
@dataclass(frozen=True)
class Model:
    """A language model of a folder.

    Attributes:
        folder: with its tokenizer.
        network: computes in the recipe's dtype.
        variables: of the folder.
        tokenizer: of the folder.
    """

    folder: Path
    network: Network
    variables: Variables
    tokenizer: data.FileTokenizer

    @property
    def started(self) -> Network:
        """The network, which starts from the folder's variables."""
        return self.network.with_variables(self.variables)

    @property
    def config(self) -> Mapping[str, Any]:
        """What the folder's config.json says."""
        return self.network.origin.config

    @property
    def width(self) -> int:
        """How many logits it has."""
        one = {"input_ids": np.zeros((1, 1), np.int32)}
        outputs = jax.eval_shape(self.network.apply, self.variables, one)[0]
        return outputs.logits.shape[-1]

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        sides = self.network.origin.sides
        said = json.loads(sides.get("generation_config.json", "{}"))
        ends = said.get("eos_token_id", self.tokenizer.eos)
        ends = ends if isinstance(ends, list) else [ends]
        return tuple(end for end in ends if isinstance(end, int))


@checked()
@dataclass(frozen=True)
class Student:
    """A model as it is trained: whole, in part, or by what stands beside its weights.

    Attributes:
        model: of the folder.
        network: that is trained, and starts from the folder's variables.
        whole: the trained network's variables ``->`` the folder's kind of variables.
    """

    model: Model
    network: Network
    whole: Callable[[Variables], Variables]

    def save(self, folder: Path, variables: Variables) -> None:
        """Write the trained model with the student's own config, dtype and files.

        Adapters are written too, to the folder ``adapter`` within, as PEFT reads them.
        """
        config = self.model.config
        dtype = jnp.dtype(config.get("dtype", config.get("torch_dtype")) or "float32")
        whole = jax.tree.map(lambda x: x.astype(dtype), self.whole(variables))
        network, source = self.model.network, self.model.folder
        save_pretrained(folder, network, whole, tokenizer=source)
        if self.network.lora is not None:
            save_adapter(folder / "adapter", self.network, variables, base=str(source))


@checked()
def load_model(
    folder: str | Path, mesh: Mesh, compute: str, *, trained: bool = False
) -> Model:
    """Return a folder's model; the weights of one that is trained are float32.

    Args:
        folder: of the model, or its name on the Hugging Face hub.
        mesh: that it lies on.
        compute: dtype that it computes in.
        trained: whether it is the student.
    """
    folder, dtype = model_folder(folder), "float32" if trained else compute
    network, variables = load_pretrained(folder, mesh=mesh, dtype=dtype)
    if compute != dtype:
        network = network.computing_in(compute)
    return Model(folder, network, variables, data.load_tokenizer(folder))


@checked()
def as_student(model: Model, train: str | None, lora: LoraConfig | None) -> Student:
    """Return a model as it is trained.

    Args:
        model: the folder's.
        train: pattern of the weights that are trained; None for all.
        lora: adapters that are trained instead.

    Raises:
        ValueError: both are given.
    """
    if lora is not None:
        if train is not None:
            raise ValueError(
                f"train is {train!r}, but with lora the adapters alone are trained: "
                "leave one of them out (--adapters.targets chooses their weights)"
            )
        adapted = with_lora(model.started, lora)
        return Student(model, adapted, lambda variables: merged(adapted, variables)[1])
    if train is None:
        return Student(model, model.started, lambda variables: variables)
    return Student(model, train_only(model.started, train), all_weights)


@checked()
def row_lengths(
    length: int | None, answer_length: int | None, *models: Model | None
) -> tuple[int, int]:
    """Return the tokens of a row, and those of an answer in it.

    Args:
        length: of a row; None for what the models' contexts allow.
        answer_length: None for a quarter of it.
        *models: that read the rows.

    Raises:
        ValueError: more than a model's context, or no room for a prompt.
    """
    found = length or LONGEST
    for model in filter(None, models):
        context = model.config.get("max_position_embeddings")
        if not isinstance(context, int):
            continue
        if length is not None and length > context:
            raise ValueError(
                f"length is {length}, but the context of {model.folder} is {context} "
                "tokens (max_position_embeddings in its config.json): lower --length"
            )
        found = min(found, context)
    answer = answer_length or max(1, found // 4)
    if answer >= found:
        raise ValueError(
            f"answer_length is {answer}, but rows have {found} tokens: leave room for "
            "a prompt, by a lower --answer-length or a higher --length"
        )
    return found, answer


@checked()
def shared_logits(teacher: Model, student: Model) -> int:
    """Return how many of their logits two models share.

    Raises:
        ValueError: their tokenizers differ. It names the methods for that.
    """
    try:
        return data.check_vocabularies(
            teacher.tokenizer,
            student.tokenizer,
            teacher_width=teacher.width,
            student_width=student.width,
        )
    except ValueError as error:
        raise ValueError(f"{error}: --method aligned or --method uld") from None


@checked()
def first_logits(network: Network, size: int) -> Network:
    """Return a network with the first of its logits."""

    def apply(variables: Variables, inputs: Any, **how: Any) -> Any:
        outputs, variables = network.apply(variables, inputs, **how)
        return replace(outputs, logits=outputs.logits[..., :size]), variables

    return replace(network, apply=apply)
