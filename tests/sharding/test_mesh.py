"""Meshes: every split of state and batch trains to one device's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxkd import combine, distill, methods, models
from jaxkd.data import Source, batches
from jaxkd.sharding.mesh import partition
from jaxkd.training import (
    MESHES,
    Checkpoints,
    MeshShape,
    fit,
    make_mesh,
    shard_batch,
    state_sharding,
)

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(40, 4, 4, 1)).astype("f4"),
        "label": rng.integers(0, 4, 40).astype("i4"),
    }
    return batches(Source("toy", arrays, 4), 8, epochs=2)


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def program():
    teacher = models.mlp(16, (1024,), 4)
    variables = teacher.init(jax.random.key(5))
    return distill(
        models.cnn(1, (4, 1024), 4).astype(jnp.float64),
        teacher.with_variables(variables).astype(jnp.float64),
        combine((0.5, methods.cross_entropy()), (0.5, methods.kd())),
        optax.sgd(0.1, momentum=0.9),
    )


@pytest.fixture(scope="module")
def one_device(program, data):
    return fit(program, data, key=KEY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(data=4),
        MeshShape(fsdp=4),
        MeshShape(tensor=4),
        MeshShape(data=2, fsdp=2),
        MeshShape(dcn=2, fsdp=2),
    ],
    ids=str,
)
def test_every_mesh_trains_to_the_numbers_of_one_device(
    program, data, one_device, shape
):
    mesh = make_mesh(shape)
    state, history = fit(program, data, key=KEY, mesh=mesh)
    expected = jax.tree.leaves(state_sharding(state, mesh, program.axes))
    for array, sharding in zip(jax.tree.leaves(state), expected, strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    # In double precision, since rounding grows tenfold a step in training.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
        state.student,
        one_device[0].student,
    )
    assert history[-1]["train_loss"] == pytest.approx(
        one_device[1][-1]["train_loss"], rel=1e-9
    )


def test_fsdp_holds_a_share_of_every_large_array(program, data):
    mesh = make_mesh("fsdp")
    state, _ = fit(program, data, key=KEY, steps=1, mesh=mesh)
    kernel = state.student["params"]["stages"]["1"]["convs"]["0"]["kernel"]
    momentum = state.opt_state[0].trace["student"]["stages"]["1"]["convs"]["0"]
    for array in (
        kernel,
        momentum["kernel"],
        state.teacher["params"]["hidden"]["0"]["kernel"],
    ):
        (shard, *_) = array.addressable_shards
        assert shard.data.size * 4 == array.size
    bias = state.student["params"]["head"]["bias"]
    assert bias.sharding.is_fully_replicated


@pytest.mark.slow
def test_a_sharded_run_resumes_identically(program, data, tmp_path):
    mesh = make_mesh(MeshShape(data=2, fsdp=2))
    whole, _ = fit(program, data, key=KEY, mesh=mesh)
    with Checkpoints(tmp_path) as checkpoints:
        fit(program, data, key=KEY, mesh=mesh, steps=5, checkpoints=checkpoints)
        state, _ = fit(program, data, key=KEY, mesh=mesh, checkpoints=checkpoints)
        jax.tree.map(np.testing.assert_array_equal, state.student, whole.student)
        moved, _ = fit(program, data, key=KEY, checkpoints=checkpoints)
    # The finished run's state, brought to one device.
    jax.tree.map(np.testing.assert_array_equal, moved.student, whole.student)


def test_partition():
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2))

    def spec(*shape, min_size=1):
        return partition(("layer", "kernel"), shape, mesh, {}, min_size)

    assert spec(3, 3, 8, 6) == PartitionSpec(None, None, "fsdp", "tensor")
    assert spec(8, 7) == PartitionSpec("fsdp", None)
    assert spec(7, 8) == PartitionSpec(None, "tensor")
    assert spec(7, 7) == PartitionSpec(None, None)
    assert spec() == PartitionSpec()
    assert spec(8, 8, min_size=65) == PartitionSpec()
    one = make_mesh("one")
    assert partition((), (8, 8), one, {}, 1) == PartitionSpec(None, None)


def test_make_mesh():
    assert make_mesh().shape == {"dcn": 1, "data": 4, "fsdp": 1, "tensor": 1}
    assert make_mesh("one").devices.tolist() == [[[[jax.devices()[0]]]]]
    assert make_mesh("fsdp").shape["fsdp"] == 4
    assert tuple(make_mesh(MeshShape(-1, 2)).shape.values()) == (1, 2, 2, 1)
    assert tuple(make_mesh(MeshShape(dcn=2, fsdp=-1)).shape.values()) == (2, 1, 2, 1)
    assert (
        make_mesh("data", jax.devices()[2:]).devices.ravel().tolist()
        == (jax.devices()[2:])
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("fdsp", "unknown mesh 'fdsp': did you mean 'fsdp'"),
        (
            "v5e-256",
            r"fsdp=64, tensor=4, dcn=1\) needs 256 devices, but there are 4: choose",
        ),
        (MeshShape(-1, 3), "needs a multiple of 3 devices, but there are 4"),
        (MeshShape(-1, -1), "-1 at most once"),
        (MeshShape(0), "must have positive sizes"),
        (MeshShape(-2), "must have positive sizes"),
    ],
    ids=str,
)
def test_a_mesh_that_cannot_be_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_every_named_mesh_fits_its_slice():
    for name, shape in MESHES.items():
        if "-" not in name:
            make_mesh(name)
        else:
            chips = int(name.rpartition("-")[2])
            assert shape.data * shape.fsdp * shape.tensor == chips
            assert shape.dcn == (2 if name.startswith("2x") else 1)


def test_shard_batch():
    batch = {
        "image": np.ones((8, 2)),
        "graph": {"nodes": jnp.zeros((4, 3))},
        "beta": 0.5,
    }
    sharded = shard_batch(batch, make_mesh(MeshShape(2, 2)))
    np.testing.assert_array_equal(sharded["image"], batch["image"])
    assert sharded["image"].addressable_shards[1].data.shape == (2, 2)
    assert sharded["graph"]["nodes"].addressable_shards[0].data.shape == (1, 3)
    assert sharded["beta"].sharding.is_fully_replicated


def test_a_batch_the_mesh_cannot_share_is_refused(program):
    message = (
        r"batch\['image'\] holds 6 examples, which the 4 devices of the mesh's data "
        "and fsdp axes cannot share evenly: use a batch size that is a multiple of 4"
    )
    with pytest.raises(ValueError, match=message):
        shard_batch({"image": np.ones((6, 2))}, make_mesh())
    arrays = {"image": np.ones((6, 4, 4, 1), "f4"), "label": np.zeros(6, "i4")}
    data = batches(Source("six", arrays, 4), 6, epochs=1)
    with pytest.raises(ValueError, match=message):
        fit(program, data, key=KEY, mesh=make_mesh())
