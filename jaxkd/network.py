"""Network: any model of any framework as two pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.types import Axes, Batch, Inputs, Outputs, Variables


@runtime_checkable
class Apply(Protocol):
    """The forward pass of a `Network`."""

    def __call__(
        self,
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        """Return the outputs, and the variables with ``stats`` brought up to date."""
        ...


@dataclass(frozen=True)
class Network:
    """Any model of any framework as two pure functions.

    Attributes:
        init: ``key -> variables``.
        apply: ``(variables, inputs, *, taps, train, key) -> (Outputs, variables)``.
        taps: the names of the features that can be asked for.
        reads: the keys of a batch that the network takes, see `read`.
        spec: of the zoo's networks, (name in `jaxkd.models.MODELS`, all arguments of
            that constructor), from which folders of weights say what they hold.
        axes: the logical axes of its weights, as their layers declare them, by the end
            of a weight's path: of a wrapped network those of the network inside.
    """

    init: Callable[[PRNGKeyArray], Variables]
    apply: Apply
    taps: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("image",)
    spec: tuple[str, Mapping[str, Any]] | None = field(default=None, compare=False)
    axes: Axes = field(default=MappingProxyType({}), compare=False)

    @classmethod
    def from_nnx(
        cls,
        build: Callable[[nnx.Rngs], nnx.Module],
        *,
        taps: Mapping[str, str] | None = None,
        reads: tuple[str, ...] = ("image",),
    ) -> "Network":
        """Make a network from a Flax NNX model, yours or the zoo's.

        Args:
            build: ``nnx.Rngs -> nnx.Module``; the module takes the inputs and returns
                logits or `Outputs`. If its ``__call__`` has parameters named ``taps``,
                ``train`` (or ``training``, ``deterministic``) or ``rngs``, they are
                passed; BatchNorm and Dropout are switched by ``nnx.Module.train/eval``.
            taps: tap name -> path of the submodule whose output it is, such as
                ``{"mid": "layers.3.mlp"}``. The model needs no edit.
            reads: the keys of a batch that the model takes, any names: of one key the
                array itself, of several a dict of those that the batch has.

        Raises:
            ValueError: a path in ``taps`` names no submodule.
        """
        from jaxkd.adapters import nnx_network

        return replace(nnx_network(build, taps), reads=reads)

    @classmethod
    def from_linen(
        cls,
        module: Any,
        example: Inputs,
        *,
        taps: Mapping[str, str] | None = None,
        reads: tuple[str, ...] = ("image",),
    ) -> "Network":
        """Make a network from a Flax Linen module.

        Args:
            module: the ``flax.linen.Module``; it takes the inputs and returns logits or
                `Outputs`. Parameters of ``__call__`` are handled as in `from_nnx`.
            example: inputs of the right shape and dtype (arrays or
                ``jax.ShapeDtypeStruct``), read when the variables are made.
            taps: tap name -> path of the submodule whose output it is, such as
                ``{"mid": "encoder.Dense_0"}``.
            reads: as in `from_nnx`.

        Raises:
            ValueError: a path in ``taps`` names no submodule.
        """
        from jaxkd.adapters import linen_network

        return replace(linen_network(module, example, taps), reads=reads)

    @classmethod
    def from_apply(
        cls,
        init: Callable[[PRNGKeyArray], PyTree],
        apply: Callable[..., Any],
        *,
        taps: tuple[str, ...] = (),
        reads: tuple[str, ...] = ("image",),
    ) -> "Network":
        """Make a network from two plain functions without state.

        Args:
            init: ``key -> params``.
            apply: ``(params, inputs) -> logits`` or `Outputs`; keyword parameters
                named ``taps``, ``train`` and ``key`` are passed where it has them.
            taps: the names of the features that ``apply`` can return.
            reads: as in `from_nnx`.
        """
        from jaxkd.adapters import apply_network

        return replace(apply_network(init, apply, taps), reads=reads)

    def read(self, batch: Batch, role: str = "") -> Inputs:
        """Return the network's inputs out of a batch.

        Args:
            batch: of any keys, those in `reads` among them.
            role: what the network is in a program, such as ``"teacher"``. Where the
                batch has inputs of that role, keys with the role before their name
                (``teacher_input_ids``), they stand in for *all* the shared ones: the
                student's ``attention_mask`` would be wrong for the teacher's tokens.

        Returns:
            The array itself where `reads` is one key; else a dict of those that the
            batch has.

        Raises:
            ValueError: the batch has none of them.
        """
        shared = {name: batch[name] for name in self.reads if name in batch}
        names = {name: f"{role}_{name}" for name in self.reads} if role else {}
        own = {name: batch[key] for name, key in names.items() if key in batch}
        inputs = own or shared
        if not inputs:
            raise ValueError(
                f"the network reads {', '.join(self.reads)}, but the batch has "
                f"{', '.join(sorted(batch))}: make the network with reads= the keys "
                "that it takes, or name the batch's arrays so"
            )
        return inputs[self.reads[0]] if len(self.reads) == 1 else inputs

    def with_variables(self, variables: Variables) -> "Network":
        """Return this network starting from ``variables`` whatever the key.

        It makes a trained network a teacher, or gives a student a warm start. Training
        donates its state, so it starts from a copy.
        """

        def init(key: PRNGKeyArray) -> Variables:
            return jax.tree.map(jnp.copy, variables)

        return replace(self, init=init)

    def astype(self, dtype: Any) -> "Network":
        """Return this network with floating-point parameters and inputs of a dtype.

        The usual use is a frozen bf16 teacher beside a float32 student. ``stats`` are
        kept as they are, since running averages lose too much in bf16, and are cast
        only to be read, when ``train`` is false.
        """

        def init(key: PRNGKeyArray) -> Variables:
            variables = self.init(key)
            return {**variables, "params": _cast(variables["params"], dtype)}

        def apply(variables, inputs, *, train=False, **kwargs):
            inputs = _cast_inputs(inputs, dtype)
            if train:
                return self.apply(variables, inputs, train=True, **kwargs)
            outputs, _ = self.apply(_cast(variables, dtype), inputs, **kwargs)
            return outputs, variables

        return replace(self, init=init, apply=apply)

    def computing_in(self, dtype: Any) -> "Network":
        """Return this network computing in a dtype from parameters kept as they are.

        The usual use is mixed precision: a student whose forward and backward passes
        run in bf16, while the optimizer updates float32 parameters. Outputs come in
        the dtype (losses are computed in float32 all the same), ``stats`` are kept.
        """

        def apply(variables, inputs, *, train=False, **kwargs):
            inputs = _cast_inputs(inputs, dtype)
            if not train:
                outputs, _ = self.apply(_cast(variables, dtype), inputs, **kwargs)
                return outputs, variables
            low = {**variables, "params": _cast(variables["params"], dtype)}
            outputs, changed = self.apply(low, inputs, train=True, **kwargs)
            return outputs, {**variables, "stats": changed["stats"]}

        return replace(self, apply=apply)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        tree,
    )


def _cast_inputs(inputs: Inputs, dtype: Any) -> Inputs:
    """Cast inputs, but not the time of diffusion models: bf16 has 3 digits of it.

    A language model's cache keeps its own dtype too, which may be smaller.
    """
    cast: Any = _cast(inputs, dtype)
    if not isinstance(inputs, Mapping):
        return cast
    kept = {name: inputs[name] for name in ("time", "cache") if name in inputs}
    return {**cast, **kept}


def axes_of(*networks: Network | None) -> Axes:
    """Return the logical axes of several networks' weights.

    Where two of them name a weight alike, the first one's count.
    """
    return {
        path: axes
        for network in reversed(networks)
        if network is not None
        for path, axes in network.axes.items()
    }
