"""All networks of a space as one function of the architecture: compiled once for all.

A training-free score takes one forward pass, but compiling a network takes many times
as long. Here the architecture is data: what it leaves out is masked, or branched around
at run time. BatchNorm normalises by the batch, and no running averages are kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.adapters import abstract_module, merge_module, split_module
from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.models.parts.blocks import BatchNorm, conv
from jaxkd.models.vision.nasbench201 import (
    EDGES,
    OPERATIONS,
    WITHOUT_PARAMETERS,
    Reduction,
    ReLUConvNorm,
    run_cell,
)
from jaxkd.models.vision.resnet import BasicBlock, cifar_resnet
from jaxkd.search.proxies import code_similarity
from jaxkd.types import Outputs


class Supernet(NamedTuple):
    """A space of networks.

    Attributes:
        init: ``key -> params`` for all networks.
        apply: ``(params, image, architecture, *, taps=(), train=True) -> Outputs``;
            without ``train`` BatchNorm has averages of 0 and variances of 1.
        subnetwork: ``(params, architecture) ->`` the parameters of the zoo's network
            of that architecture.
        taps: the features that can be asked for.
    """

    init: Callable[[PRNGKeyArray], dict]
    apply: Callable[..., Outputs]
    subnetwork: Callable[[dict, tuple[int, ...]], dict]
    taps: tuple[str, ...]


@checked()
def jit_once(function: Callable) -> Callable:
    """Return a jitted function that runs little, such as ``init``.

    On CPUs LLVM's optimiser would cost more than it saves.
    """
    options = {"xla_backend_optimization_level": 0}
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=options if on_cpu else None)


class _Part(NamedTuple):
    """A module as two functions, with no state between calls."""

    init: Callable[[PRNGKeyArray], dict]
    apply: Callable[..., Any]


def _part(
    build: Callable[[nnx.Rngs], nnx.Module],
    call: Callable[[Any, Array], Any] = lambda module, x: module(x),
) -> _Part:
    abstract = abstract_module(lambda: build(nnx.Rngs(0)))

    def init(key):
        return split_module(build(nnx.Rngs(key)))[0]

    def apply(params, x, train):
        _, shapes = split_module(abstract)
        stats = jax.tree_util.tree_map_with_path(
            lambda path, s: jnp.full(s.shape, path[-1].key == "var", s.dtype), shapes
        )
        module = merge_module(abstract, params, stats)
        module.train() if train else module.eval()
        return call(module, x)

    return _Part(init, apply)


def _stacked(part: _Part, key: PRNGKeyArray, count: int) -> dict:
    return jax.vmap(part.init)(jax.random.split(key, count))


def _unstacked(params: dict, count: int) -> list[dict]:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(count)]


def _stem(channels_in: int, channels: int) -> _Part:
    return _part(
        lambda rngs: nnx.Sequential(
            conv(channels_in, channels, rngs=rngs), BatchNorm(channels, rngs=rngs)
        )
    )


def _stem_params(params: dict) -> dict:
    return {"layers": {"0": params["conv1"], "1": params["bn1"]}}


def _stem_names(params: dict) -> dict:
    return {"conv1": params["layers"]["0"], "bn1": params["layers"]["1"]}


def _head(x: Array, fc: dict, taps: tuple[str, ...], more: dict) -> Outputs:
    pooled = x.mean((1, 2))
    features = {"stage3": x, "pooled": pooled, **more}
    logits = pooled @ fc["kernel"] + fc["bias"]
    return Outputs(logits, {tap: features[tap] for tap in taps})


def _check(taps: tuple[str, ...], valid: tuple[str, ...]) -> None:
    for tap in taps:
        if tap not in valid:
            raise ValueError(unknown_name("tap", tap, valid))


@checked()
def depth_supernet(
    max_depth: int,
    classes: int = 100,
    *,
    widths: tuple[int, ...] = (16, 16, 32, 64),
    channels_in: int = 3,
) -> Supernet:
    """Return `jaxkd.models.cifar_resnet` of any three depths up to a largest.

    Its architectures are the blocks of each stage, an int array (3,); its parameters
    are those of the deepest network, whose first blocks a shallower one has. Every
    block is computed, and skipped by a mask: a branch would be cheaper, but on CPUs
    XLA takes tens of times as long for a convolution's gradient inside one.

    Taps: ``stage3``, ``pooled``, and ``codes``, (batch, batch), the kernel of `nwot`
    over all ReLUs.

    Args:
        max_depth: most blocks of a stage.
        classes: logits.
        widths: channels of the stem and of the three stages.
        channels_in: the image's channels.

    Raises:
        ValueError: as ``cifar_resnet``.
    """
    taps_valid = ("stage3", "pooled", "codes")
    largest = cifar_resnet(
        (max_depth,) * 3, classes, widths=widths, channels_in=channels_in
    )

    def block(stage: int, position: int) -> _Part:
        before, stride = widths[stage + 1], 1
        if position == 0:
            before, stride = widths[stage], 2 if stage else 1
        return _part(
            lambda rngs: BasicBlock(
                before, widths[stage + 1], stride, "projection", rngs=rngs
            ),
            # The compiler joins this convolution with the block's own, and drops it
            # where nobody asks for codes.
            lambda module, x: (module(x), module.bn1(module.conv1(x))),
        )

    stem = _stem(channels_in, widths[0])
    blocks = [[block(i, 0), block(i, 1)] for i in range(3)]

    def init(key: PRNGKeyArray) -> dict:
        return largest.init(key)["params"]

    def apply(
        params: dict,
        image: Float[Array, "batch height width channels"],
        architecture: Int[Array, "3"],
        *,
        taps: tuple[str, ...] = (),
        train: bool = True,
    ) -> Outputs:
        _check(taps, taps_valid)
        before = stem.apply(_stem_params(params), image, train)
        x, codes = jax.nn.relu(before), code_similarity(before > 0)
        for i, (first, later) in enumerate(blocks):
            for j in range(max_depth):
                own = params["layers"][str(i)][str(j)]
                out, inner = (later if j else first).apply(own, x, train)
                more = code_similarity(inner > 0) + code_similarity(out > 0)
                if j == 0:
                    x, codes = jax.nn.relu(out), codes + more
                else:
                    kept = j < architecture[i]
                    x = jnp.where(kept, jax.nn.relu(out), x)
                    codes = codes + jnp.where(kept, more, 0)
        return _head(x, params["fc"], taps, {"codes": codes})

    def subnetwork(params: dict, architecture: tuple[int, ...]) -> dict:
        layers = {
            str(i): {str(j): params["layers"][str(i)][str(j)] for j in range(depth)}
            for i, depth in enumerate(architecture)
        }
        return {**params, "layers": layers}

    return Supernet(init, apply, subnetwork, taps_valid)


@checked()
def cell_supernet(
    classes: int = 10, *, channels: int = 16, cells: int = 5, channels_in: int = 3
) -> Supernet:
    """Return `jaxkd.models.nasbench201` of any cell.

    Its architectures are the positions in ``OPERATIONS`` of the six edges' operations,
    an int array (6,). Cells are scanned over stacked parameters, and an edge branches
    to its operation at run time. Taps: ``stage3`` and ``pooled``.

    Args:
        classes: logits.
        channels: of the first stage.
        cells: in each stage.
        channels_in: the image's channels.
    """
    taps_valid = ("stage3", "pooled")
    widths = (channels, 2 * channels, 4 * channels)
    convolutions = [name for name in OPERATIONS if name not in WITHOUT_PARAMETERS]
    stem = _stem(channels_in, channels)
    edges = [
        {
            name: _part(
                lambda rngs, w=width, k=int(name[-1]): ReLUConvNorm(w, w, k, rngs=rngs)
            )
            for name in convolutions
        }
        for width in widths
    ]
    reductions = [
        _part(lambda rngs, w=width: Reduction(w, 2 * w, rngs=rngs))
        for width in widths[:-1]
    ]
    last = _part(lambda rngs: BatchNorm(widths[-1], rngs=rngs))
    fc = _part(lambda rngs: nnx.Linear(widths[-1], classes, rngs=rngs))

    def init(key: PRNGKeyArray) -> dict:
        keys = iter(jax.random.split(key, 5 + 3 * len(EDGES) * len(convolutions)))
        return {
            **_stem_names(stem.init(next(keys))),
            "stages": {
                str(i): {
                    str(e): {
                        name: _stacked(part, next(keys), cells)
                        for name, part in edges[i].items()
                    }
                    for e in range(len(EDGES))
                }
                for i in range(3)
            },
            "reductions": {
                str(i): part.init(next(keys)) for i, part in enumerate(reductions)
            },
            "bn2": last.init(next(keys)),
            "fc": fc.init(next(keys)),
        }

    def apply(
        params: dict,
        image: Float[Array, "batch height width channels"],
        architecture: Int[Array, "6"],
        *,
        taps: tuple[str, ...] = (),
        train: bool = True,
    ) -> Outputs:
        _check(taps, taps_valid)
        x = stem.apply(_stem_params(params), image, train)
        for i in range(3):

            def edge(stage, params, position, x):
                own = {
                    name: lambda x, name=name: edges[stage][name].apply(
                        params[str(position)][name], x, train
                    )
                    for name in convolutions
                }
                branches = [{**own, **WITHOUT_PARAMETERS}[name] for name in OPERATIONS]
                return jax.lax.switch(architecture[position], branches, x)

            def cell(x, params, i=i):
                return run_cell(x, lambda e, s: edge(i, params, e, s)), ()

            x, _ = jax.lax.scan(cell, x, params["stages"][str(i)])
            if i < len(reductions):
                x = reductions[i].apply(params["reductions"][str(i)], x, train)
        x = jax.nn.relu(last.apply(params["bn2"], x, train))
        return _head(x, params["fc"], taps, {})

    def subnetwork(params: dict, architecture: tuple[int, ...]) -> dict:
        names = [OPERATIONS[i] for i in architecture]
        stages = {
            i: _unstacked(
                {
                    str(e): stage[str(e)][name]
                    for e, name in enumerate(names)
                    if name in convolutions
                },
                cells,
            )
            for i, stage in params["stages"].items()
        }
        rest = {part: tree for part, tree in params.items() if part != "stages"}
        if not set(names) & set(convolutions):
            return rest
        kept = {
            i: {str(c): {"edges": own} for c, own in enumerate(found)}
            for i, found in stages.items()
        }
        return {**rest, "stages": kept}

    return Supernet(init, apply, subnetwork, taps_valid)
