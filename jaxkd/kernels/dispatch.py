"""Which version of an operation runs: one asked for by name, or the platform's best."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name

Implementation = Literal["auto", "reference", "xla", "pallas"]

IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)


class Versions(NamedTuple):
    """The versions of one operation: functions of the same arrays, same results.

    Attributes:
        reference: plain jnp, the meaning.
        xla: fast on every platform.
        tpu: in Pallas, or None.
        gpu: in Pallas, or None.
    """

    reference: Callable[..., Any]
    xla: Callable[..., Any]
    tpu: Callable[..., Any] | None = None
    gpu: Callable[..., Any] | None = None


@checked()
def dispatch(op: str, implementation: str, versions: Versions, *arrays: Any) -> Any:
    """Return the result of the version asked for.

    The platform is that which the program is compiled for, not that of this process, so
    a program compiled ahead of time for a TPU has the TPU's kernels. Derivatives are
    those of the version that runs.

    Args:
        op: the operation's name, for errors.
        implementation: a name of `IMPLEMENTATIONS`. ``"auto"`` is Pallas where there is
            a kernel for the platform, else XLA.
        versions: of the operation.
        *arrays: its arguments.

    Raises:
        ValueError: an unknown implementation, or ``"pallas"`` of an operation that has
            no Pallas kernel for these arguments.
        NotImplementedError: at compilation, ``"pallas"`` for a platform without one.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            unknown_name("implementation", implementation, IMPLEMENTATIONS)
        )
    if implementation == "reference":
        return versions.reference(*arrays)
    kernels = {
        platform: kernel
        for platform, kernel in (("tpu", versions.tpu), ("cuda", versions.gpu))
        if kernel is not None
    }
    if implementation == "xla" or (implementation == "auto" and not kernels):
        return versions.xla(*arrays)
    if not kernels:
        raise ValueError(
            f"{op} has no Pallas kernel: choose implementation 'auto', 'xla' or "
            "'reference'"
        )
    default = versions.xla
    if implementation == "pallas":
        default = _refusal(op, tuple(kernels), versions.xla)
    return jax.lax.platform_dependent(*arrays, default=default, **kernels)


def _refusal(op: str, platforms: tuple[str, ...], like: Callable) -> Callable:
    """Return a function of ``like``'s results that cannot be compiled."""
    message = (
        f"{op} has Pallas kernels for {' and '.join(platforms)}, not for the platform "
        "that it is compiled for: choose implementation 'auto', 'xla' or 'reference'"
    )

    def refuse(*arrays: Any) -> Any:
        results, tree = jax.tree.flatten(jax.lax.stop_gradient(like(*arrays)))
        return jax.tree.unflatten(tree, _unsupported.bind(*results, message=message))

    return refuse


def _fail(*_: Any, message: str, **__: Any) -> Any:
    raise NotImplementedError(message)


_unsupported = Primitive("unsupported_kernel")
_unsupported.multiple_results = True
_unsupported.def_abstract_eval(lambda *results, message: list(results))
_unsupported.def_impl(_fail)
mlir.register_lowering(_unsupported, _fail)
