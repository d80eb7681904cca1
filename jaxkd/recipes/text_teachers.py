"""Teachers whose answers come from elsewhere: a cache on disk, or a server."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxkd.arguments import checked, count
from jaxkd.data.sources import Examples
from jaxkd.recipes.text_methods import Way
from jaxkd.recipes.text_models import Model, Student
from jaxkd.teachers import (
    CachedTeacher,
    ServedTeacher,
    retokenized,
    scored_candidates,
)
from jaxkd.teachers.cache import MANIFEST

Answered = Callable[[Examples], Examples]


@checked(k=count)
@dataclass(frozen=True)
class ServerConfig:
    """How a teacher is asked that is served.

    Attributes:
        model: its name at the server.
        k: how many of its most likely tokens are asked for.
        key_variable: environment variable that holds the key, if it wants one.
    """

    model: str = ""
    k: int = 32
    key_variable: str | None = None


@checked()
def asked_of(
    way: Way,
    student: Student,
    teacher: Model | None,
    answered: Answered | None,
    prompts: Examples,
    length: int,
) -> Callable[..., Any] | None:
    """Return what is asked of a teacher about the student's own answers.

    Args:
        way: that the student is trained.
        student: to train.
        teacher: in the step, if it is.
        answered: from `elsewhere`.
        prompts: of the training.
        length: of a row.

    Returns:
        None where the teacher reads them in the step.

    Raises:
        ValueError: a teacher that can only be asked beforehand.
    """
    ask = None
    if teacher is not None and way.two_tokenizers:
        tokenizers = student.model.tokenizer, teacher.tokenizer
        ask = retokenized(*tokenizers, length=length)
    elif answered is not None:
        served = answered(prompts)
        assert isinstance(served, ServedTeacher), "caches are refused before"
        ask = scored_candidates(served, student.network)
    if ask is not None and way.program != "on_policy":
        raise ValueError(
            f"{way.program} reads a teacher in the step with the student's tokenizer: "
            "take another --method, or such a teacher"
        )
    return ask


@checked()
def elsewhere(
    teacher: str | Path | None, server: ServerConfig, way: Way
) -> Answered | None:
    """Return rows ``->`` the same with a teacher's most likely tokens, if it is one.

    Args:
        teacher: URL of a server, folder of a cache, or what is neither.
        server: how it is asked.
        way: that the student is trained.

    Raises:
        ValueError: a server without a model's name, a key that is not there, or a cache
            where the student writes texts.
    """
    if teacher is None:
        return None
    if str(teacher).startswith(("http://", "https://")):
        if not server.model:
            raise ValueError(
                f"{teacher} may serve several models: name one by --server.model"
            )
        key = server.key_variable and os.environ.get(server.key_variable)
        if server.key_variable and not key:
            raise ValueError(
                f"the environment variable {server.key_variable} is not set: it is to "
                "hold the server's key"
            )
        return lambda rows: ServedTeacher(
            rows, str(teacher), server.model, server.k, key
        )
    if (Path(teacher) / MANIFEST).is_file():
        if way.program != "distill":
            raise ValueError(
                f"{teacher} is a cache of answers that are there already, but the "
                "student writes others: give the teacher itself, or a server"
            )
        return lambda rows: CachedTeacher(rows, teacher)
    return None
