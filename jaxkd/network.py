"""Network: any model of any framework as two pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.adapters import (
    NO_EDITS,
    WHOLE,
    Adapted,
    Edits,
    Segment,
    adapt_functions,
    adapt_linen,
    adapt_nnx,
    as_variables,
    merge_module,
)
from jaxkd.arguments import checked, floating
from jaxkd.checks import unknown_name
from jaxkd.types import NO_AXES, Axes, Batch, Inputs, Outputs, Variables


@runtime_checkable
class Apply(Protocol):
    """The forward pass of a `Network`."""

    def __call__(
        self,
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        edits: Edits = NO_EDITS,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        """Return the outputs, and the variables with ``stats`` brought up to date.

        Args:
            variables: of the network.
            inputs: as `Network.read` takes them from a batch.
            taps: features that the outputs are to have.
            edits: tap -> ``fn(activation)``, which takes the activation's place: the
                forward pass goes on with it, and a tap of that name has it.
            train: whether in training mode.
            key: of dropout and other random numbers.
        """
        ...


@checked()
@dataclass(frozen=True)
class Network:
    """Any model of any framework as two pure functions.

    Attributes:
        init: ``key -> variables``.
        apply: ``(variables, inputs, *, taps, edits, train, key) -> (Outputs,
            variables)``, see `Apply`.
        taps: the names of the features that can be asked for.
        reads: the keys of a batch that the network takes, see `read`.
        spec: of the zoo's networks, (name in `jaxkd.models.MODELS`, all arguments of
            that constructor), from which folders of weights say what they hold.
        axes: the logical axes of its weights, as their layers declare them, by the end
            of a weight's path: of a wrapped network those of the network inside.
        cuts: the taps that `segment` can cut it at, in the order of the forward pass.
        module: the Flax module that it was made of; of NNX the structure alone.
        origin: what the folder that it was read from says beyond the network, which
            `jaxkd.interop.save_pretrained` writes again.
        vocabulary: tokens that it reads are below it; None where that is not known.
        lora: of `jaxkd.networks.with_lora` what it was given, network and config.
    """

    init: Callable[[PRNGKeyArray], Variables]
    apply: Apply
    taps: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("image",)
    spec: tuple[str, Mapping[str, Any]] | None = field(default=None, compare=False)
    axes: Axes = field(default=NO_AXES, compare=False)
    cuts: tuple[str, ...] = ()
    module: Any = field(default=None, compare=False, repr=False)
    origin: Any = field(default=None, compare=False, repr=False)
    vocabulary: int | None = field(default=None, compare=False)
    lora: Any = field(default=None, compare=False, repr=False)

    @classmethod
    @checked()
    def from_nnx(
        cls,
        build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module,
        *,
        taps: Mapping[str, str] | None = None,
        reads: tuple[str, ...] = ("image",),
    ) -> "Network":
        """Make a network from a Flax NNX model, yours or the zoo's.

        Args:
            build: ``nnx.Rngs -> nnx.Module``, such as the model's class, or a module
                that is built, from whose weights ``init`` then starts. It takes the
                inputs and returns logits or `Outputs`. Of the parameters of its
                ``__call__`` these are passed:
                ``steps`` (a `Steps`, for edits and cuts), ``taps``, ``rngs``, and
                ``train``, ``training``, ``is_training``, ``deterministic`` or
                ``use_running_average``. BatchNorm and Dropout are switched by
                ``nnx.Module.train/eval`` too.
            taps: tap name -> path of the submodule whose output it is, such as
                ``{"mid": "layers.3.mlp"}``. The model needs no edit.
            reads: the keys of a batch that the model takes, any names: of one key the
                array itself, of several a dict of those that the batch has.

        Raises:
            ValueError: ``build`` makes no module or needs more arguments, a path in
                ``taps`` names no submodule, or the model needs an argument that is none
                of these.
        """
        return cls._of(adapt_nnx(build, taps), reads)

    @classmethod
    @checked()
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
            ValueError: as `from_nnx`.
        """
        return cls._of(adapt_linen(module, example, taps), reads)

    @classmethod
    @checked()
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
                named ``taps``, ``edits``, ``train`` and ``key`` are passed where it has
                them.
            taps: the names of the features that ``apply`` can return.
            reads: as in `from_nnx`.
        """
        return cls._of(adapt_functions(init, apply, taps), reads)

    @classmethod
    def _of(cls, adapted: Adapted, reads: tuple[str, ...]) -> "Network":
        return cls(
            adapted.init,
            adapted.apply,
            adapted.taps,
            reads,
            axes=adapted.axes,
            cuts=adapted.cuts,
            module=adapted.module,
        )

    @checked()
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

    @checked()
    def segment(self, start: str | None = None, stop: str | None = None) -> "Network":
        """Return the part of this network from one tap to another.

        It is a network over the same variables, and computes nothing else. Its logits
        are the activation at ``stop``. With a start it reads ``activation`` in place of
        the first key in `reads`, and of the others (a text's mask, a diffusion model's
        time) what the batch has: the array alone, or a dict.

        Args:
            start: the tap whose activation is its input; None for the network's inputs.
            stop: the tap that it ends in; None for the logits.

        Raises:
            ValueError: not one of `cuts`, or a start that does not come before the
                stop.
        """
        for name in (start, stop):
            if name is not None and name not in self.cuts:
                raise ValueError(unknown_name("cut", name, self.cuts))
        first = 0 if start is None else self.cuts.index(start) + 1
        last = len(self.cuts) if stop is None else self.cuts.index(stop) + 1
        if first >= last and stop is not None:
            raise ValueError(
                f"start {start!r} must come before stop {stop!r}: the network can be "
                f"cut at {', '.join(self.cuts)}, in this order"
            )
        inside, whole = self.cuts[first:last], cast(Any, self.apply)

        def apply(variables, inputs, *, segment: Segment = WHOLE, **kwargs):
            # Of a segment's segment the names that are given are the inner ones.
            inner = segment[0] or start, segment[1] or stop
            return whole(variables, inputs, segment=inner, **kwargs)

        return replace(
            self,
            apply=apply,
            taps=tuple(t for t in self.taps if t in inside or t not in self.cuts),
            reads=self.reads if start is None else ("activation", *self.reads[1:]),
            spec=None,
            cuts=inside,
            module=None,
        )

    def with_variables(self, variables: Any) -> "Network":
        """Return this network starting from ``variables`` whatever the key.

        It makes a trained network a teacher, or gives a student a warm start. Training
        donates its state, so it starts from a copy.

        Args:
            variables: this network's; or Linen's, ``{"params", "batch_stats", …}``; the
                parameters alone, of a network that has nothing else; an ``nnx.State``;
                a built ``nnx.Module``.

        Raises:
            ValueError: they are not this network's: it names the paths that are
                missing, left over or of another shape.
        """
        expected = jax.eval_shape(self.init, jax.random.key(0))
        placed = as_variables(variables, expected)

        def init(key: PRNGKeyArray) -> Variables:
            return jax.tree.map(jnp.copy, placed)

        return replace(self, init=init)

    def to_nnx(self, variables: Variables) -> nnx.Module:
        """Return the NNX model that this network was made of, with these weights.

        Raises:
            ValueError: the network was not made by `from_nnx`, or changed since.
        """
        if not isinstance(self.module, nnx.Module):
            raise ValueError(
                "this network is not Network.from_nnx's or the zoo's, or wraps it: "
                "call to_nnx of the network that it was made of"
            )
        return merge_module(self.module, variables["params"], variables["stats"])

    def to_linen(self, variables: Variables) -> dict[str, PyTree]:
        """Return ``{"params", "batch_stats", …}``, as a Linen module's apply takes it.

        Raises:
            ValueError: the network was not made by `from_linen`, or changed since.
        """
        if self.module is None or isinstance(self.module, nnx.Module):
            raise ValueError(
                "this network is not Network.from_linen's, or wraps it: call to_linen "
                "of the network that it was made of"
            )
        return {"params": variables["params"], **variables["stats"]}

    @checked(dtype=floating)
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
            inputs = _cast_inputs(inputs, self.reads, dtype)
            if train:
                return self.apply(variables, inputs, train=True, **kwargs)
            outputs, _ = self.apply(_cast(variables, dtype), inputs, **kwargs)
            return outputs, variables

        return replace(self, init=init, apply=apply)

    @checked(dtype=floating)
    def computing_in(self, dtype: Any) -> "Network":
        """Return this network computing in a dtype from parameters kept as they are.

        The usual use is mixed precision: a student whose forward and backward passes
        run in bf16, while the optimizer updates float32 parameters. Outputs come in
        the dtype (losses are computed in float32 all the same), ``stats`` are kept.
        """

        def apply(variables, inputs, *, train=False, **kwargs):
            inputs = _cast_inputs(inputs, self.reads, dtype)
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


def _cast_inputs(inputs: Inputs, reads: tuple[str, ...], dtype: Any) -> Inputs:
    """Cast what a network reads of a batch.

    Of several inputs, one number an example is kept: bf16 would leave 3 digits of a
    diffusion model's time. What is no part of a batch, such as a language model's
    cache, has a dtype of its own.
    """
    if not isinstance(inputs, Mapping):
        return _cast(inputs, dtype)
    read = {*reads, "activation"}  # The latter where a segment starts.
    return {
        name: _cast(x, dtype) if name in read and getattr(x, "ndim", 0) != 1 else x
        for name, x in inputs.items()
    }


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
