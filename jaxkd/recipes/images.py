"""``jaxkd distill images``: a classifier learns from another on the user's images."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxkd import data
from jaxkd.arguments import checked, count, fraction
from jaxkd.data.image_processor import PREPROCESSOR, processor_config
from jaxkd.evaluation.classification import evaluator, predictor
from jaxkd.interop import save_pretrained
from jaxkd.methods import cross_entropy
from jaxkd.network import Network
from jaxkd.programs import distill
from jaxkd.recipes.image_data import (
    Augmentation,
    Images,
    as_teacher_counts,
    augmentations,
    evaluation_source,
    read_images,
    training_source,
    transform,
)
from jaxkd.recipes.image_methods import (
    check_shapes,
    needs_teacher,
    objective,
    resolve,
)
from jaxkd.recipes.image_models import (
    Model,
    build_model,
    is_folder,
    read_model,
    usual_size,
    with_classes,
)
from jaxkd.recipes.recipe import NUMBERS, Recipe, given
from jaxkd.recipes.runs import (
    Distilled,
    Plan,
    carry_out,
    check_folders,
    train_once,
    training_folder,
)
from jaxkd.recipes.text_methods import Option
from jaxkd.training import make_mesh
from jaxkd.training.optimizers import OptimizerConfig
from jaxkd.types import Method, Program, Variables

MEASURED = {
    "top1": "accuracy",
    **{name: name for name in ("top5", "nll", "ece", "agreement", "teacher_kl")},
}
"""Metrics of the table, and what the evaluation calls them."""


@checked(**NUMBERS, size=count, validation_share=fraction)
@dataclass(frozen=True, kw_only=True)
class ImagesRecipe(Recipe):
    """How a classifier of images is distilled.

    Attributes:
        student: folder of a classifier, as `interop.load_pretrained` reads it; or the
            name of a network to train from the beginning, such as ``resnet18``,
            ``resnet20``, ``mobilenet_v2``, ``vit_tiny`` or one of `jaxkd list`.
        data: labelled images as `data.open_images` reads them: class folders of JPEG,
            PNG or WebP, a table beside images, Parquet or Arrow of `datasets`, tar
            files of WebDataset, ``.npz``.
        teacher: folder of a classifier; or the name of a network, which is trained on
            the data first, for as many steps; None for methods without one.
        method: names of methods joined by ``+``, such as ``kd+fitnets``, with weights
            or without, such as ``0.9*kd+0.1*cross_entropy``.
        options: arguments of the methods, such as ``temperature 2``, ``tap stage3
            teacher_tap stage4``; of one of them ``kd.temperature 2``.
        student_options: arguments of the constructor of a student by name.
        size: pixels of the images of networks by name; None for the teacher's, or else
            for the data's own below 96, and what the network was made for above.
        augment: what happens to images in training: ``none``, ``crop`` (random, 8 to
            100 %), ``shift``, ``flip``, ``mixup``, ``cutmix``; None for crop and flip,
            below 96 pixels for shift and flip.
        validation: images that are held out; None for the data's own split of that
            kind, or else for a share of the data.
        validation_share: of the images.
        label: the column, field or array of the classes, where it is not found.
        match: whether the data's classes are the teacher's of the same ``names``, or
            of the same ``numbers``.
    """

    student: str | Path
    data: str | Path
    teacher: str | Path | None = None
    method: str = "kd"
    options: Mapping[str, Option] = field(default_factory=dict)
    student_options: Mapping[str, Option] = field(default_factory=dict)
    size: int | None = None
    augment: tuple[Augmentation, ...] | None = None
    validation: str | Path | None = None
    validation_share: float = 0.1
    label: str | None = None
    match: Literal["names", "numbers"] = "names"
    epochs: float = 30.0
    batch_size: int = 64
    optimizer: OptimizerConfig = OptimizerConfig(
        "adamw", 1e-3, weight_decay=0.05, warmup=0.05, clip=1.0
    )


@checked()
def distill_images(
    recipe: ImagesRecipe | None = None,
    *,
    console: Console | None = None,
    **arguments: Any,
) -> Distilled:
    """Distil a classifier of images, and write its folder.

    The folder is one that transformers loads where it has such a model, and that this
    library loads always: weights, config with the classes' names, what the images go
    through, with a model card, a report and the recipe. The same call goes on with a
    run that was stopped.

    Args:
        recipe: the job; None for one of the arguments alone.
        console: where progress and the table are shown; None shows nothing.
        **arguments: fields of `ImagesRecipe`, in place of the recipe's.

    Returns:
        The state of the student that was written, the evaluations, the folder and the
        numbers of the table.

    Raises:
        FileExistsError: the folder to write exists.
        FileNotFoundError: a model is missing, or no images are there.
        ValueError: models, data and method that do not go together; it says what to do.
        OSError: something could not be written; the same call then goes on.
    """
    recipe = given(ImagesRecipe, recipe, arguments)
    check_folders("images", recipe)
    return carry_out("images", recipe, _plan(recipe, console), console)


def _plan(recipe: ImagesRecipe, console: Console | None) -> Plan:
    terms = resolve(recipe.method, recipe.options)
    if needs_teacher(terms) and recipe.teacher is None:
        raise ValueError(
            f"method {recipe.method} learns from a teacher: give a folder or a model's "
            "name by --teacher, or train without by --method cross_entropy"
        )
    images = read_images(
        recipe.data,
        recipe.validation,
        recipe.validation_share,
        recipe.seed,
        recipe.label,
    )
    teacher = _teacher(recipe, images, console) if needs_teacher(terms) else None
    if teacher is not None:
        images = as_teacher_counts(images, teacher, recipe.match)
    student = _student(recipe, images, teacher)
    steps = recipe.length_of(images.train)
    method = objective(terms, student, teacher, steps)
    program, batches = _training(recipe, images, student, teacher, method, steps)
    evaluate = _measure(images, student, teacher)

    def control() -> tuple[Program, Iterable[Any]]:
        return _training(recipe, images, student, None, cross_entropy(), steps)

    def save(folder: Path, variables: Variables) -> None:
        _save(folder, student, variables, images.names)

    weights = {term.name: term.weight for term in terms}
    return Plan(
        program=program,
        batches=batches,
        steps=steps,
        evaluate=evaluate,
        before=_started(student).init(jax.random.key(recipe.seed)),
        metric="top1",
        save=save,
        teacher=None
        if teacher is None
        else lambda: _measure(images, teacher, None)(teacher.variables),
        control=control if recipe.control else None,
        about={
            "teacher": "none" if teacher is None else str(recipe.teacher),
            "student": f"{recipe.student} at {student.size} x {student.size} pixels",
            "method": " + ".join(f"{w:g} {name}" for name, w in weights.items()),
            "features": ", ".join(method.student_taps) or "none",
            "data": f"{recipe.data}: {len(images.train):,} images of {images.classes} "
            "classes",
            "held out": f"{images.held_out.name}: {len(images.held_out):,} images",
            "augmentation": ", ".join(augmentations(recipe.augment, student.size))
            or "none",
        },
    )


def _teacher(recipe: ImagesRecipe, images: Images, console: Console | None) -> Model:
    """Return the teacher of a folder, or one by name that is trained first."""
    assert recipe.teacher is not None
    folder: str | Path = recipe.teacher
    if not is_folder(folder):
        folder = training_folder(recipe) / "trained teacher"
        if not folder.exists():
            size = recipe.size or usual_size(str(recipe.teacher), images.side)
            model = build_model(str(recipe.teacher), images.classes, size, {}, None)
            model.outputs(model.network.taps)
            steps = recipe.length_of(images.train)
            program, batches = _training(
                recipe, images, model, None, cross_entropy(), steps
            )
            variables = train_once(
                "images", recipe, "teacher", program, batches, steps, console
            )
            _save(folder, model, variables, images.names)
    found = _read(recipe, folder, recipe.compute)
    found.outputs(found.network.taps)
    return found


def _student(recipe: ImagesRecipe, images: Images, teacher: Model | None) -> Model:
    """Return the student, of the data's classes, ready to compute."""
    if is_folder(recipe.student):
        if recipe.student_options:
            raise ValueError("student_options are for a student by name, not a folder")
        found = _read(recipe, recipe.student, "float32")
        found = with_classes(found, images.classes, recipe.seed)
    else:
        size = recipe.size or (
            usual_size(str(recipe.student), images.side)
            if teacher is None
            else teacher.size
        )
        like = None if teacher is None else teacher.processor
        found = build_model(
            str(recipe.student), images.classes, size, recipe.student_options, like
        )
    found.outputs(found.network.taps)
    if recipe.compute != "float32":
        found = replace(found, network=found.network.computing_in(recipe.compute))
    return found


def _read(recipe: ImagesRecipe, folder: str | Path, dtype: str) -> Model:
    mesh = make_mesh(recipe.mesh)
    return read_model(folder, mesh=mesh, dtype=dtype, size=recipe.size)


def _started(model: Model) -> Network:
    if model.variables is None:
        return model.network
    return model.network.with_variables(model.variables)


def _training(
    recipe: ImagesRecipe,
    images: Images,
    student: Model,
    teacher: Model | None,
    method: Method,
    steps: int,
) -> tuple[Program, Iterable[Any]]:
    """Return a program and its batches."""
    largest = max(filter(None, (student, teacher)), key=lambda model: model.size)
    names = augmentations(recipe.augment, largest.size)
    source = training_source(images, largest, names)
    batches = data.batches(
        source,
        recipe.batch_size,
        epochs=-(-steps // data.steps_per_epoch(source, recipe.batch_size)),
        seed=recipe.seed,
        transform=transform(student, teacher, largest.size, images.classes, names),
    )
    program = distill(
        _started(student),
        None if teacher is None else _started(teacher),
        method,
        recipe.optimizer.build(steps),
        accumulate=recipe.accumulate,
    )
    if teacher is not None and method.teacher_taps:
        batch = jax.tree.map(jnp.asarray, next(iter(batches)))

        def trace() -> None:
            jax.eval_shape(
                lambda key: program.step(program.init(key, batch), batch),
                jax.random.key(0),
            )

        check_shapes(trace, method, student, teacher)
    return program, batches


def _measure(
    images: Images, model: Model, teacher: Model | None
) -> Callable[[Any], Mapping[str, float]]:
    """Return ``variables -> metrics`` on what was held out, as the model sees it."""
    logits = None
    if teacher is not None:
        source = evaluation_source(images.held_out, teacher)
        predict = predictor(
            teacher.network, source, 256, transform=teacher.sees(teacher.size)
        )
        logits = predict(_started(teacher).init(jax.random.key(0)))
    source = evaluation_source(images.held_out, model)
    measure = evaluator(
        model.network, source, logits, 256, transform=model.sees(model.size)
    )

    def measured(variables: Any) -> dict[str, float]:
        found = measure(variables)
        return {x: found[name] for x, name in MEASURED.items() if name in found}

    return measured


def _save(
    folder: Path, model: Model, variables: Variables, names: tuple[str, ...]
) -> None:
    """Write a model's folder: its weights, the classes' names, and its processor."""
    config: dict[str, Any] = {}
    if names:
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    shape = (model.size, model.size, 3)
    save_pretrained(folder, model.network, variables, input_shape=shape, config=config)
    path = folder / PREPROCESSOR
    if jax.process_index() == 0 and not path.exists():
        path.write_text(json.dumps(processor_config(model.processor), indent=2) + "\n")
