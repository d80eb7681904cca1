"""What is kept of a teacher, and which teacher it was."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxkd.arguments import checked, count
from jaxkd.checks import check_read_tokens
from jaxkd.network import Network
from jaxkd.types import Batch, Variables

DTYPES = ("coded", "float16", "float32")


@checked()
@dataclass(frozen=True)
class TeacherTargets:
    """A teacher that answers batches with the arrays to be stored.

    Attributes:
        fingerprint: another for every other teacher.
        settings: what else the arrays depend on, as JSON can hold it.
        answer: ``batch -> arrays``, one row an example.
    """

    fingerprint: str
    settings: Mapping[str, Any]
    answer: Callable[[Batch], Mapping[str, np.ndarray]]


def variables_fingerprint(variables: Variables) -> str:
    """Return a checksum of a network's variables: paths, shapes, dtypes and values."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        array = np.ascontiguousarray(_whole(leaf))
        name = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        total.update(name.encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def _whole(leaf: Any) -> np.ndarray:
    """Return all of an array, though other processes hold parts of it."""
    if isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return jax.device_get(leaf)


@checked(k=count)
def network_targets(
    teacher: Network,
    variables: Variables,
    *,
    k: int | None,
    dtype: str | None = None,
    vocabulary: int | None = None,
    mesh: Mesh | None = None,
) -> TeacherTargets:
    """Return a network as the teacher of a cache.

    A number in float16 is off by 2^-11 of itself at most: the log-probability of a
    token of 1 % by 0.002, and so its probability by 0.2 % of itself. Coded, it is off
    by half as much and takes fewer bytes, see `jaxkd.teachers.coding`. float32 stores
    what the network computed.

    Args:
        teacher: the network.
        variables: its.
        k: how many best tokens to keep; None keeps all logits, which
            `jaxkd.methods.cached` reads.
        dtype: of the log-probabilities or logits, one of `DTYPES`; None for coded best
            tokens, and for logits, which are not coded, in float16.
        vocabulary: the first logits that count, as of `check_vocabularies`; None for
            all. It is `jaxkd.methods.shared_vocabulary`'s size, for caches.
        mesh: of this process's devices, on which the variables lie; None for one.

    Raises:
        ValueError: another dtype, all logits coded, k below 1, or fewer logits than
            ``vocabulary``; from ``answer``, tokens that are none of the teacher's.
    """
    # The layers above this one read data, so they are imported when all are there.
    from jaxkd.losses.topk import top_k_log_probs
    from jaxkd.methods.masks import finite_outputs
    from jaxkd.sharding.mesh import on_mesh, shard_batch

    if dtype is None:
        dtype = "float16" if k is None else "coded"
    if k is None and dtype == "coded":
        raise ValueError(
            'dtype is "coded", but k is None: only the k best tokens are coded, all '
            'logits are kept as "float16" or "float32"'
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")

    def stored(values: Any) -> Any:
        kind = "float32" if dtype == "coded" else dtype
        limit = float(jnp.finfo(kind).max)
        return jnp.clip(values, -limit, limit).astype(kind)

    def compute(variables: Variables, batch: Batch) -> dict[str, Any]:
        inputs = teacher.read(batch, "teacher")
        # What is said of padding is read by nobody, but must be a number.
        logits = finite_outputs(teacher.apply(variables, inputs)[0], batch).logits
        if vocabulary is not None:
            if logits.shape[-1] < vocabulary:
                raise ValueError(
                    f"vocabulary is {vocabulary}, but the teacher has "
                    f"{logits.shape[-1]} logits: give what it shares with the student, "
                    "as check_vocabularies returns it"
                )
            logits = logits[..., :vocabulary]
        if k is None:
            return {"teacher_logits": stored(logits)}
        ids, log_probs = top_k_log_probs(logits, k)
        smallest = np.min_scalar_type(logits.shape[-1] - 1)
        return {
            "teacher_ids": ids.astype(smallest),
            "teacher_log_probs": stored(log_probs),
        }

    run = jax.jit(compute if mesh is None else on_mesh(compute, mesh))

    def answer(batch: Batch) -> Mapping[str, np.ndarray]:
        check_read_tokens(batch, "teacher", teacher.vocabulary)
        batch = batch if mesh is None else shard_batch(batch, mesh)
        return jax.device_get(run(variables, batch))

    settings = {"k": k, "dtype": dtype, "vocabulary": vocabulary}
    return TeacherTargets(variables_fingerprint(variables), settings, answer)
