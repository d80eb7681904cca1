"""``jaxkd distill text``: a language model learns from another on the user's texts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxkd import data
from jaxkd.arguments import checked, count, fraction
from jaxkd.evaluation.language import fidelity_evaluator, token_evaluator
from jaxkd.generation import Sampling
from jaxkd.methods import cross_entropy, shared_vocabulary
from jaxkd.network import Network
from jaxkd.networks import LoraConfig
from jaxkd.programs import distill
from jaxkd.recipes.answers import Asked
from jaxkd.recipes.recipe import NUMBERS, Recipe, given
from jaxkd.recipes.runs import AFTER, BEFORE, Distilled, Plan, carry_out, check_folders
from jaxkd.recipes.text_data import Reader, chat_template
from jaxkd.recipes.text_methods import Option, objective, resolve, train_by
from jaxkd.recipes.text_models import (
    Model,
    as_student,
    first_logits,
    load_model,
    row_lengths,
    shared_logits,
)
from jaxkd.recipes.text_teachers import ServerConfig, asked_of, elsewhere
from jaxkd.training import make_mesh
from jaxkd.types import Program, Variables


@checked(**NUMBERS, length=count, answer_length=count, validation_share=fraction)
@dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """How a language model is distilled on texts or conversations.

    Attributes:
        student: folder of a language model, or its name on the Hugging Face hub, as
            `interop.load_pretrained` reads it, with its tokenizer.
        data: files of records, as `data.open_records` reads them (.jsonl, .parquet,
            .array_record, …), each with ``messages``, with ``prompt`` and ``response``,
            or with ``text``; or one folder of `data.Documents.save`, as caches have.
        teacher: likewise; or folder of a cache that `jaxkd cache-teacher` wrote, or URL
            of a server; None for methods without one.
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
        train: regular expression of the weights that are trained, as of
            `networks.freezing.train_only`; None for all.
        lora: whether low-rank adapters are trained instead; they are added to the
            weights that are written.
        adapters: of what kind these are.
        server: how a teacher is asked that is served.
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
    train: str | None = None
    lora: bool = False
    adapters: LoraConfig = LoraConfig()
    server: ServerConfig = ServerConfig()


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
    mesh = make_mesh(recipe.mesh)
    model = load_model(recipe.student, mesh, recipe.compute, trained=True)
    student = as_student(model, recipe.train, recipe.adapters if recipe.lora else None)
    answered = elsewhere(recipe.teacher, recipe.server, way)
    if answered is not None and way.name != "topk_kd":
        raise ValueError(
            f"{recipe.teacher} gives the teacher's most likely tokens, and method "
            f"{recipe.method} needs more: take --method topk"
        )
    teacher = None
    if recipe.teacher is not None and answered is None:
        teacher = load_model(recipe.teacher, mesh, recipe.compute)
    length, answer_length = row_lengths(
        recipe.length, recipe.answer_length, model, teacher
    )
    reader = Reader(
        model.tokenizer,
        lambda: chat_template(recipe.template, model.folder),
        length,
        alone="segment_ids" not in model.network.reads,
    )
    shared = None
    known: dict[str, Any] = {}
    if teacher is not None and way.two_tokenizers:
        common = data.common_tokens(model.tokenizer, teacher.tokenizer)
        known["common"], folder = common, teacher.folder
        template = lambda: chat_template(recipe.template, folder)  # noqa: E731
        reader = replace(reader, teacher=(teacher.tokenizer, template))
    elif teacher is not None:
        shared = shared_logits(teacher, model)
    train, held_out = reader.read(
        recipe.data,
        recipe.validation,
        recipe.validation_share,
        recipe.seed,
        answered or (lambda rows: rows),
    )
    prompts, asked = (
        texts.prompts(length, answer_length, model.tokenizer.pad)
        for texts in (train, held_out)
    )
    source, ask = train.rows, None
    if way.program != "distill":
        if prompts is None or asked is None:
            raise ValueError(
                f"method {recipe.method} answers prompts, but the records are plain "
                "texts: give messages, or prompt and response, or take --method kd"
            )
        source = prompts
        ask = asked_of(way, student, teacher, answered, prompts, length)
    steps = recipe.length_of(source)
    optimizer = recipe.optimizer.build(steps)
    pair = [student.network] if teacher is None else [student.network, teacher.network]
    known["heads"] = all("head" in network.taps for network in pair)
    method = objective(way, total_steps=steps, **known)
    if shared not in (None, model.width) and not way.supervised:
        method = shared_vocabulary(method, shared)
    program = train_by(
        way,
        student.network,
        teacher.started if teacher is not None and way.teacher else None,
        method,
        optimizer,
        steps=steps,
        accumulate=recipe.accumulate,
        batch_size=recipe.batch_size,
        ask=ask,
        max_new_tokens=answer_length,
        sampling=recipe.sampling,
        eos=model.ends,
        pad=model.tokenizer.pad or 0,
    )
    batches = _batches(recipe, source, steps)
    if way.program == "off_policy":
        assert asked is not None, "asked above"
        # Few prompts make whole batches by standing in them more than once.
        places = np.resize(np.arange(len(asked)), max(len(asked), recipe.batch_size))
        batches = data.with_validation(
            batches, data.Subset(asked, places), recipe.batch_size, seed=recipe.seed
        )

    def control() -> tuple[Program, Iterable[Any]]:
        alone = distill(
            student.network,
            None,
            cross_entropy(),
            optimizer,
            accumulate=recipe.accumulate,
        )
        return alone, _batches(recipe, train.rows, steps)

    questions = None
    if asked is not None and recipe.rouge_prompts:
        questions = Asked(asked, recipe.rouge_prompts, model.tokenizer, model.ends)
    measure = _Measure(recipe.batch_size, held_out.rows, questions)

    before = student.network.init(jax.random.key(recipe.seed))

    def answers(variables: Variables) -> list[dict[str, str]]:
        if questions is None or "cache" not in student.network.taps:
            return []
        rows = {BEFORE: before, AFTER: variables}
        return questions.shown(
            {name: (student.network, each) for name, each in rows.items()}
        )

    follow = None
    if teacher is not None and shared is not None:
        follow = teacher, shared
    return Plan(
        program=program,
        batches=batches,
        steps=steps,
        evaluate=measure(student.network, follow),
        before=before,
        metric="nll",
        save=student.save,
        teacher=None
        if follow is None
        else lambda: measure(follow[0].network)(follow[0].variables),
        control=control if recipe.control else None,
        answers=answers,
        about={
            "teacher": str(recipe.teacher or "none"),
            "student": str(recipe.student),
            "method": _said(recipe),
            "data": str(train),
            "held out": str(held_out),
        },
    )


def _batches(recipe: TextRecipe, source: data.Examples, steps: int) -> Any:
    epochs = -(-steps // data.steps_per_epoch(source, recipe.batch_size))
    return data.batches(source, recipe.batch_size, epochs=epochs, seed=recipe.seed)


@dataclass(frozen=True)
class _Measure:
    """What is measured on the texts that were held out.

    Attributes:
        batch_size: of the forward passes.
        rows: the texts.
        asked: prompts that are answered, if there are any.
    """

    batch_size: int
    rows: data.Examples
    asked: Asked | None

    def __call__(
        self, network: Network, follow: tuple[Model, int] | None = None
    ) -> Callable[[Any], Mapping[str, float]]:
        """Return ``variables -> metrics`` of a network.

        Args:
            network: teacher or student.
            follow: the teacher of the student, and the logits that both have.
        """
        parts = [token_evaluator(network, self.rows, self.batch_size)]
        if follow is not None:
            teacher, shared = follow
            parts.append(
                fidelity_evaluator(
                    first_logits(network, shared),
                    first_logits(teacher.network, shared),
                    teacher.variables,
                    self.rows,
                    self.batch_size,
                )
            )
        if self.asked is not None and "cache" in network.taps:
            parts.append(self.asked.evaluator(network))
        return lambda state: {
            name: value for part in parts for name, value in part(state).items()
        }


def _said(recipe: TextRecipe) -> str:
    options = ", ".join(f"{name} {value}" for name, value in recipe.options.items())
    return recipe.method + (f" ({options})" if options else "")
