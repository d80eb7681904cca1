"""How a data set is divided among the clients of a federation."""

from typing import Literal, get_args

import numpy as np

from jaxkd.arguments import checked, count, own_check, positive_share
from jaxkd.checks import unknown_name

Kind = Literal["strong", "weak", "dirichlet", "iid"]


@checked(kind=own_check, clients=count)
def partition(
    labels: np.ndarray,
    clients: int,
    kind: Kind,
    *,
    seed: int = 0,
    classes_per_client: int = 3,
    concentration: float = 0.5,
) -> list[np.ndarray]:
    """Divide examples among clients, every example to one of them.

    ``strong`` gives each client one class, ``weak`` some, both by dealing a random
    order of the classes around; clients of one class share its examples evenly.
    ``dirichlet`` draws each class's shares (Hsu et al. 2019, arXiv:1909.06335), ``iid``
    deals all examples evenly.

    Args:
        labels: (examples,) class indices.
        clients: how many.
        kind: of the division.
        seed: of all that is drawn.
        classes_per_client: of ``weak``.
        concentration: of ``dirichlet``; the smaller, the more uneven.

    Returns:
        The examples' positions of each client, sorted.

    Raises:
        ValueError: labels that are no class indices, an unknown kind, more classes a
            client than there are, classes that no client would get, or a client without
            examples.
    """
    if kind not in get_args(Kind):
        raise ValueError(unknown_name("kind of partition", kind, get_args(Kind)))
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}: give class indices, "
            "one an example"
        )
    if kind == "iid":
        parts = np.array_split(rng.permutation(len(labels)), clients)
    elif kind == "dirichlet":
        parts = _by_shares(labels, clients, concentration, rng)
    else:
        held = 1 if kind == "strong" else classes_per_client
        parts = _by_classes(labels, clients, held, rng)
    for client, part in enumerate(parts):
        if len(part) == 0:
            raise ValueError(
                f"client {client} of {clients} gets none of {len(labels)} examples: "
                "use fewer clients, a larger concentration, or another seed"
            )
    return [np.sort(part) for part in parts]


def _by_classes(
    labels: np.ndarray, clients: int, held: int, rng: np.random.Generator
) -> list[np.ndarray]:
    classes = rng.permutation(np.unique(labels))
    if not 1 <= held <= len(classes) or clients * held < len(classes):
        raise ValueError(
            f"{clients} clients of {held} classes each cannot hold the {len(classes)} "
            "classes: take clients × classes_per_client of at least as many, and no "
            "more classes a client than there are"
        )
    dealt = np.arange(clients * held) % len(classes)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for i, label in enumerate(classes):
        holders = np.flatnonzero(dealt == i) // held
        examples = rng.permutation(np.flatnonzero(labels == label))
        for holder, share in zip(
            holders, np.array_split(examples, len(holders)), strict=True
        ):
            parts[holder].append(share)
    return [np.concatenate(part) for part in parts]


def _by_shares(
    labels: np.ndarray, clients: int, concentration: float, rng: np.random.Generator
) -> list[np.ndarray]:
    if concentration <= 0:
        raise ValueError(f"concentration must be above 0, got {concentration}")
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        examples = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, concentration))
        cuts = np.round(np.cumsum(shares)[:-1] * len(examples)).astype(int)
        for part, share in zip(parts, np.split(examples, cuts), strict=True):
            part.append(share)
    return [np.concatenate(part) for part in parts]


@checked(share=positive_share)
def build_proxy(
    parts: list[np.ndarray], share: float, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the proxy set: a share of every client's examples, at least one.

    They stay in the client's training data; their labels are not shared.

    Args:
        parts: of each client, from `partition`.
        share: in (0, 1].
        seed: of the choice.

    Returns:
        The proxies' positions, client by client, and the client that gave each.

    Raises:
        ValueError: a share out of range.
    """
    chosen = [
        np.sort(
            np.random.default_rng([seed, client]).choice(
                part, max(round(share * len(part)), 1), replace=False
            )
        )
        for client, part in enumerate(parts)
    ]
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in chosen])
    return np.concatenate(chosen), owner
