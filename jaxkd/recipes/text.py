"""``jaxkd distill text``: a language model learns from another on the user's texts."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxkd import data
from jaxkd.arguments import checked, count, fraction
from jaxkd.evaluation.language import fidelity_evaluator, token_evaluator
from jaxkd.generation import Sampling
from jaxkd.interop import load_pretrained, save_pretrained
from jaxkd.methods import cross_entropy, shared_vocabulary
from jaxkd.network import Network
from jaxkd.programs import distill
from jaxkd.recipes.answers import Asked
from jaxkd.recipes.recipe import NUMBERS, Recipe, given
from jaxkd.recipes.runs import Distilled, Plan, carry_out, check_folders
from jaxkd.recipes.text_data import (
    Texts,
    chat_template,
    read_texts,
    tokenize_records,
)
from jaxkd.recipes.text_methods import Option, Way, objective, resolve, train_by
from jaxkd.training import make_mesh
from jaxkd.types import Program, Variables, deployed

Measure = Callable[[Any], Mapping[str, float]]

LONGEST = 1024
"""Tokens of a row, where neither recipe nor student says."""


@checked(**NUMBERS, length=count, answer_length=count, validation_share=fraction)
@dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """How a language model is distilled on texts or conversations.

    Attributes:
        student: folder of a language model, as `interop.load_pretrained` reads it, with
            its tokenizer.
        data: files of records, as `data.open_records` reads them (.jsonl, .parquet,
            .array_record, …), each with ``messages``, with ``prompt`` and ``response``,
            or with ``text``.
        teacher: folder of a language model; None for methods without one.
        method: ``sft``, ``kd``, ``gkd``, ``minillm``, ``distillm``, ``seqkd``, any
            divergence, or any method of `jaxkd list` that takes logits.
        options: arguments of the method and of the program that samples, such as
            ``beta 0.9 student_share 1.0``.
        validation: records that are held out; None for a share of the data.
        validation_share: of the records.
        template: of conversations, ``chatml``, ``llama3``, ``plain`` or a file of
            Jinja's; None for the student's own.
        length: tokens of a row, prompt and answer; None for the student's context, 1024
            at most.
        answer_length: tokens of an answer to a prompt; None for a quarter of it.
        rouge_prompts: prompts that are answered at each evaluation, for ROUGE-L.
        sampling: how answers are drawn in training.
    """

    student: str | Path
    data: tuple[str | Path, ...]
    teacher: str | Path | None = None
    method: str = "kd"
    options: Mapping[str, Option] = field(default_factory=dict)
    validation: str | Path | None = None
    validation_share: float = 0.05
    template: str | None = None
    length: int | None = None
    answer_length: int | None = None
    rouge_prompts: int = 16
    sampling: Sampling = Sampling()


@dataclass(frozen=True)
class Model:
    """A language model of a folder, ready to compute.

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
def distill_text(
    recipe: TextRecipe | None = None,
    *,
    console: Console | None = None,
    **arguments: Any,
) -> Distilled:
    """Distil a language model on texts or conversations, and write its folder.

    The folder is one that transformers loads: weights, config, tokenizer, chat template
    and generation config, with a model card, a report and the recipe. The same call
    goes on with a run that was stopped.

    Args:
        recipe: the job; None for one of the arguments alone.
        console: where progress and the table are shown; None shows nothing.
        **arguments: fields of `TextRecipe`, in place of the recipe's.

    Returns:
        The state of the student that was written, the evaluations, the folder and the
        numbers of the table.

    Raises:
        FileExistsError: the folder to write exists.
        FileNotFoundError: a model or file is missing.
        ValueError: models, data and method that do not go together; it says what to do.
        OSError: something could not be written; the same call then goes on.
    """
    one = arguments.get("data")
    if isinstance(one, str | Path):
        arguments["data"] = (one,)
    recipe = given(TextRecipe, recipe, arguments)
    check_folders("text", recipe)
    return carry_out("text", recipe, _plan(recipe), console)


def _plan(recipe: TextRecipe) -> Plan:
    way = resolve(recipe.method, recipe.options)
    if way.teacher and recipe.teacher is None:
        raise ValueError(
            f"method {recipe.method} learns from a teacher: give the folder of one by "
            "--teacher, or train without by --method sft"
        )
    student = _load(recipe, recipe.student, trained=True)
    teacher = None
    if recipe.teacher is not None:
        teacher = _load(recipe, recipe.teacher, trained=False)
    length, answer_length = _lengths(recipe, student, teacher)
    train, held_out = read_texts(
        recipe.data,
        recipe.validation,
        recipe.validation_share,
        recipe.seed,
        lambda name, records: tokenize_records(
            name,
            records,
            student.tokenizer,
            lambda: chat_template(recipe.template, student.folder),
            length=length,
            answer_length=answer_length,
            alone="segment_ids" not in student.network.reads,
        ),
    )
    shared = None if teacher is None else _shared(teacher, student)
    program, batches, steps = _program(
        recipe, way, student, teacher, shared, train, held_out
    )
    measure = _measure(recipe, student, teacher, shared, held_out)

    def control() -> tuple[Program, Iterable[Any]]:
        optimizer = recipe.optimizer.build(steps)
        alone = distill(
            student.started,
            None,
            cross_entropy(),
            optimizer,
            accumulate=recipe.accumulate,
        )
        return alone, _batches(recipe, train.rows, steps)

    def save(folder: Path, variables: Variables) -> None:
        dtype = student.config.get("dtype", student.config.get("torch_dtype"))
        dtype = jnp.dtype(dtype or jnp.float32)
        variables = jax.tree.map(lambda x: x.astype(dtype), variables)
        save_pretrained(folder, student.network, variables, tokenizer=student.folder)

    return Plan(
        program=program,
        batches=batches,
        steps=steps,
        evaluate=measure(student),
        before=student.variables,
        metric="nll",
        save=save,
        teacher=None
        if teacher is None
        else lambda: measure(teacher)(teacher.variables),
        control=control if recipe.control else None,
        about={
            "teacher": str(recipe.teacher or "none"),
            "student": str(recipe.student),
            "method": _said(recipe),
            "data": _counted(train),
            "held out": _counted(held_out),
        },
    )


def _load(recipe: TextRecipe, folder: str | Path, *, trained: bool) -> Model:
    """Return a model: one that is trained keeps float32 weights."""
    dtype = "float32" if trained else recipe.compute
    network, variables = load_pretrained(
        folder, mesh=make_mesh(recipe.mesh), dtype=dtype
    )
    if trained and recipe.compute != dtype:
        network = network.computing_in(recipe.compute)
    return Model(Path(folder), network, variables, data.load_tokenizer(folder))


def _lengths(recipe: TextRecipe, *models: Model | None) -> tuple[int, int]:
    """Return the tokens of a row, and those of an answer.

    Raises:
        ValueError: more than a model's context, or no room for a prompt.
    """
    length = recipe.length
    for model in filter(None, models):
        context = model.config.get("max_position_embeddings")
        if not isinstance(context, int):
            continue
        if recipe.length is not None and recipe.length > context:
            raise ValueError(
                f"length is {recipe.length}, but the context of {model.folder} is "
                f"{context} tokens (max_position_embeddings): lower --length"
            )
        length = min(length or LONGEST, context)
    length = length or LONGEST
    answer = recipe.answer_length or max(1, length // 4)
    if answer >= length:
        raise ValueError(
            f"answer_length is {answer} of length {length}: leave room for a prompt"
        )
    return length, answer


def _shared(teacher: Model, student: Model) -> int:
    """Return how many logits both models share.

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
        raise ValueError(f"{error} (--method seqkd)") from None


def _program(
    recipe: TextRecipe,
    way: Way,
    student: Model,
    teacher: Model | None,
    shared: int | None,
    train: Texts,
    held_out: Texts,
) -> tuple[Program, Iterable[Any], int]:
    """Return the program, its batches and the steps."""
    source: data.Examples = train.rows
    if way.program != "distill":
        if train.prompts is None or held_out.prompts is None:
            raise ValueError(
                f"method {recipe.method} answers prompts, but the records are plain "
                "texts: give messages, or prompt and response, or take --method kd"
            )
        source = train.prompts
    steps = recipe.length_of(source)
    method = objective(way, steps)
    if shared not in (None, student.width) and not way.supervised:
        method = shared_vocabulary(method, shared)
    program = train_by(
        way,
        student.started,
        None if teacher is None or not way.teacher else teacher.started,
        method,
        recipe.optimizer.build(steps),
        steps=steps,
        accumulate=recipe.accumulate,
        batch_size=recipe.batch_size,
        max_new_tokens=0 if train.prompts is None else train.prompts.response_length,
        sampling=recipe.sampling,
        eos=student.ends,
        pad=student.tokenizer.pad or 0,
    )
    batches = _batches(recipe, source, steps)
    if way.program == "off_policy":
        assert held_out.prompts is not None, "asked above"
        batches = data.with_validation(
            batches, held_out.prompts, recipe.batch_size, seed=recipe.seed
        )
    return program, batches, steps


def _batches(recipe: TextRecipe, source: data.Examples, steps: int) -> Any:
    epochs = -(-steps // data.steps_per_epoch(source, recipe.batch_size))
    return data.batches(source, recipe.batch_size, epochs=epochs, seed=recipe.seed)


def _measure(
    recipe: TextRecipe,
    student: Model,
    teacher: Model | None,
    shared: int | None,
    held_out: Texts,
) -> Callable[[Model], Measure]:
    """Return ``model -> (variables -> metrics)`` on what was held out."""
    size, rows = recipe.batch_size, held_out.rows
    asked = None
    if held_out.prompts is not None and recipe.rouge_prompts:
        asked = Asked(
            held_out.prompts, recipe.rouge_prompts, student.tokenizer, student.ends
        )

    def answered(asked: Asked, network: Network) -> Measure:
        answers = asked.answers(network)
        return lambda variables: {"rouge_l": asked.score(answers(deployed(variables)))}

    def measure(model: Model) -> Measure:
        parts: list[Measure] = [token_evaluator(model.network, rows, size)]
        if teacher is not None and shared is not None and model is student:
            first, second = (_first(m.network, shared) for m in (student, teacher))
            parts.append(
                fidelity_evaluator(first, second, teacher.variables, rows, size)
            )
        if asked is not None and "cache" in model.network.taps:
            parts.append(answered(asked, model.network))
        return lambda variables: {
            name: value for part in parts for name, value in part(variables).items()
        }

    return measure


def _first(network: Network, size: int) -> Network:
    """Return a network with the first of its logits."""

    def apply(variables: Variables, inputs: Any, **how: Any) -> Any:
        outputs, variables = network.apply(variables, inputs, **how)
        logits = outputs.logits[..., :size]
        return dataclasses.replace(outputs, logits=logits), variables

    return dataclasses.replace(network, apply=apply)


def _said(recipe: TextRecipe) -> str:
    options = ", ".join(f"{name} {value}" for name, value in recipe.options.items())
    return recipe.method + (f" ({options})" if options else "")


def _counted(texts: Texts) -> str:
    found = texts.documents
    learnt = len(found.tokens) if found.trained is None else int(found.trained.sum())
    return (
        f"{found.name}: {len(found):,} records, {len(found.tokens):,} tokens, "
        f"{learnt:,} of them learnt, in {len(texts.rows):,} rows of "
        f"{texts.rows.length:,}"
    )
