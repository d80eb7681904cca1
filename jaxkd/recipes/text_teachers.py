"""Teachers whose answers come from elsewhere: a cache on disk, or a server."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxkd.arguments import checked, count
from jaxkd.data.sources import Examples
from jaxkd.teachers import CachedTeacher, ServedTeacher
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


def elsewhere(teacher: str | Path | None, server: ServerConfig) -> Answered | None:
    """Return rows ``->`` the same with a teacher's most likely tokens, if it is one.

    Args:
        teacher: URL of a server, folder of a cache, or what is neither.
        server: how it is asked.

    Raises:
        ValueError: a server without a model's name, or a key that is not there.
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
        return lambda rows: CachedTeacher(rows, teacher)
    return None
