"""What optax is told: which weights decay, and which part each belongs to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, methods, models, training

ARGUMENTS = {
    "llama": {"vocabulary": 8, "width": 8, "layers": 2, "heads": 2, "hidden": 8},
    "mamba2": {"vocabulary": 8, "width": 64, "layers": 2},
    "vit": {"size": (8, 1, 2), "image_size": 16},
    "cifar_resnet": {"depth": 8, "classes": 3},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_matrices_decay_and_norms_and_biases_do_not(name):
    network = models.create(name, **ARGUMENTS[name])
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    mask = training.decay_mask(params)
    decayed = {"kernel": True, "embedding": True, "prefix": True, "positions": True}
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        assert decays == decayed.get(path[-1].key, False), path
    # Of stacked layers the norms have two axes, as a matrix has.
    stacked = [x.ndim for x, decays in _both(params, mask) if not decays]
    assert (2 in stacked) == (name in ("llama", "mamba2"))


def _both(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def test_parts_of_a_program_have_optimizers_of_their_own():
    network = models.mlp(4, widths=[3], classes=2)
    teacher = models.mlp(4, widths=[5], classes=2)
    still = {"student": optax.set_to_zero(), "method": optax.sgd(1.0)}
    optimizer = optax.multi_transform(still, training.part_labels)
    program = distill(network, teacher, methods.fitnets("hidden0"), optimizer)
    batch = {"image": jnp.ones((2, 4)), "label": jnp.zeros(2, int)}
    state = program.init(jax.random.key(0), batch)
    after, _ = jax.jit(program.step)(state, batch)
    for x, y in _both(state.student["params"], after.student["params"]):
        np.testing.assert_array_equal(x, y)
    moved = [(x != y).any() for x, y in _both(state.method, after.method)]
    assert moved
    assert any(moved)
    assert training.part_labels({"student": {"a": [1, 2]}, "method": {}}) == {
        "student": {"a": ["student", "student"]},
        "method": {},
    }


def test_later_layers_learn_faster():
    assert training.layer_scales(2, 0.5) == (0.125, 0.25, 0.5, 1.0)
    network = models.vit((8, 2, 2), 3, image_size=8, patch_size=4)
    params = {"student": jax.eval_shape(network.init, jax.random.key(0))["params"]}
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), params)
    scale = training.scale_by_layer(2, 0.5)
    found = scale.update(ones, scale.init(ones))[0]["student"]
    for group, names in enumerate(
        ({"prefix", "positions", "patches"}, {"0"}, {"1"}, {"norm", "head"})
    ):
        part = {k: x for k, x in {**found, **found["blocks"]}.items() if k in names}
        assert part
        for x in jax.tree.leaves(part):
            np.testing.assert_array_equal(x, training.layer_scales(2, 0.5)[group])
    with pytest.raises(ValueError, match="depth is 1, but there is a block 1"):
        training.scale_by_layer(1, 0.5).update(ones, ())
