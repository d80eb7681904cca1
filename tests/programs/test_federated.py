"""Rounds of federated distillation: what is shared, with whom, and what it leaves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Network, training
from jaxkd.data import Compose, Normalize, Source, batches
from jaxkd.federated import Rounds
from jaxkd.losses import ambiguity_filter, cross_entropy_loss, masked_ensemble
from jaxkd.programs import fd_client, federated_distillation
from jaxkd.programs.federated import init_key, round_keys

CLIENTS, CLASSES, ROUNDS = 4, 4, 2


def linear(width=4):
    return Network.from_apply(
        lambda key: 0.1 * jax.random.normal(key, (width, CLASSES)), lambda w, x: x @ w
    )


def client(network=None, **changes):
    settings = {"local_steps": 2, "distill_steps": 3, "distill_batch_size": 5}
    return fd_client(network or linear(), optax.sgd(0.5), **{**settings, **changes})


@functools.cache
def program():
    return federated_distillation(client())


@functools.cache
def step():
    return jax.jit(program().step)


@pytest.fixture(scope="module")
def rounds():
    rng = np.random.default_rng(0)
    label = np.arange(40) % CLASSES
    image = rng.normal(size=(40, 4)).astype("f4")
    image[np.arange(40), label] += 3
    source = Source("blobs", {"image": image, "label": label.astype("i4")}, CLASSES)
    parts = [np.flatnonzero(label == c) for c in range(CLIENTS)]
    proxies = np.concatenate([part[:4] for part in parts])
    masks = rng.random((CLIENTS, 16)) < 0.4
    masks[:, 1] = False
    return Rounds(source, parts, proxies, masks, ROUNDS, 6, 12, 5)


def batch(rounds, number=0):
    return rounds.take(np.arange(CLIENTS) + number * CLIENTS)


@pytest.fixture(scope="module")
def first(rounds):
    """The first round's batch, the program's start, and the state and metrics after."""
    given = batch(rounds)
    start = jax.jit(program().init)(jax.random.key(0), given)
    return given, start, *step()(start, given)


def weights(state):
    return np.asarray(state.clients.variables["params"])


def test_a_round_is_two_descents_written_out(first):
    """In NumPy, step by step: cross-entropy, the masked mean, then its divergence."""
    given, start, end, metrics = first

    def descend(w, x, targets, valid):
        p = np.exp(x @ w) / np.exp(x @ w).sum(-1, keepdims=True)
        scale = valid / max(valid.sum(), 1)
        return w - 0.5 * x.T @ ((p - targets) * scale[:, None])

    images = given["proxy"]["image"].reshape(-1, 4)
    masks = given["mask"].reshape(-1, CLIENTS).T
    learnt = []
    for c, w in enumerate(weights(start)):
        private = {name: x[c] for name, x in given["private"].items()}
        for rows in (slice(0, 3), slice(3, 6)):
            onehot = np.eye(CLASSES)[private["label"][rows]]
            w = descend(w, private["image"][rows], onehot, np.ones(3))
        learnt.append(w)
    p = [np.exp(images @ w) / np.exp(images @ w).sum(-1, keepdims=True) for w in learnt]
    total = sum(m[:, None] * q for m, q in zip(masks, p, strict=True))
    targets = total / np.maximum(masks.sum(0), 1)[:, None]
    valid = masks.any(0)
    for c, w in enumerate(learnt):
        _, key = round_keys(start.key, 0, c)
        order, _ = jax.random.split(key)
        drawn = np.concatenate(
            [jax.random.permutation(k, 12) for k in jax.random.split(order, 2)]
        )[:15]
        for rows in drawn.reshape(3, 5):
            w = descend(w, images[rows], targets[rows], valid[rows])
        np.testing.assert_allclose(weights(end)[c], w, rtol=1e-4, atol=1e-5)
    assert end.step == 1
    shared = masks.mean()
    np.testing.assert_allclose(metrics["shared"], shared, rtol=1e-6)
    assert metrics["upload_bytes"] == masks.sum() * 4 * (CLASSES + 1)
    assert metrics["valid"] == valid.mean()


def test_clients_start_from_their_own_keys(first):
    _, start, _, _ = first
    for c in range(CLIENTS):
        key = init_key(jax.random.key(0), c)
        expected = 0.1 * jax.random.normal(key, (4, CLASSES))
        np.testing.assert_array_equal(weights(start)[c], expected)
    assert len(np.unique(weights(start).ravel())) == weights(start).size


def test_random_numbers_are_of_one_client_and_round():
    key = jax.random.key(0)
    keys = [init_key(key, c) for c in range(2)]
    keys += [k for r in range(2) for c in range(2) for k in round_keys(key, r, c)]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 10


def test_clients_in_a_sequence_may_differ_and_compute_the_same(first):
    """Beside a network with a hidden layer that shares nothing, as under vmap."""
    given, start, _, _ = first
    given = {**given, "mask": given["mask"].copy()}
    given["mask"][..., 3] = False
    deep = Network.from_apply(
        lambda key: {
            "a": jax.random.normal(key, (4, 5)),
            "b": jnp.zeros((5, CLASSES)),
        },
        lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"],
    )
    in_turn = federated_distillation([client()] * 3 + [client(deep)])
    state = jax.jit(in_turn.init)(jax.random.key(0), given)
    state, found = jax.jit(in_turn.step)(state, given)
    expected, metrics = step()(start, given)
    for c in range(3):
        np.testing.assert_allclose(
            state.clients[c].variables["params"],
            weights(expected)[c],
            rtol=1e-5,
            atol=1e-6,
        )
    assert np.abs(state.clients[3].variables["params"]["b"]).max() > 0
    assert found.keys() == metrics.keys()
    for name in ("shared", "valid", "upload_bytes"):
        assert found[name] == metrics[name]


def test_who_shares_nothing_and_gets_nothing_learns_alone(rounds, first):
    given, start, _, _ = first
    alone = federated_distillation(client(), None)
    state, metrics = jax.jit(alone.step)(start, given)
    assert "upload_bytes" not in metrics
    nothing = {**given, "mask": np.zeros_like(given["mask"])}
    same, metrics = step()(start, nothing)
    assert metrics["valid"] == metrics["distill_loss"] == 0
    np.testing.assert_allclose(weights(state), weights(same), rtol=1e-6)


def test_a_masked_clients_predictions_reach_nobody(rounds, first):
    """Its weights are made huge: the others' do not move by it."""
    given, start, _, _ = first
    given = {**given, "mask": given["mask"].copy()}
    given["mask"][..., 1] = False

    def scaled(factor):
        params = start.clients.variables["params"].at[1].multiply(factor)
        variables = {**start.clients.variables, "params": params}
        clients = start.clients.replace(variables=variables)
        return step()(start.replace(clients=clients), given)[0]

    a, b = weights(scaled(1.0)), weights(scaled(jnp.nan))
    np.testing.assert_array_equal(a[[0, 2, 3]], b[[0, 2, 3]])
    assert np.isnan(b[1]).all()
    assert np.isfinite(a).all()


def test_the_server_may_do_more_than_average(rounds, first):
    given, start, end, _ = first

    def aggregate(predictions, masks):
        mean, valid = masked_ensemble(predictions, masks)
        return mean, valid & ambiguity_filter(mean, 1.0)

    state, metrics = jax.jit(federated_distillation(client(), aggregate).step)(
        start, given
    )
    assert metrics["valid"] < 1
    assert np.abs(weights(state) - weights(end)).max() > 1e-3


def test_masked_private_examples_count_for_nothing(rounds, first):
    given, start, _, _ = first
    mask = np.ones((CLIENTS, 6), np.float32)
    mask[:, 0] = mask[:, 4:] = 0
    private = {**given["private"], "mask": mask}
    poisoned = {**private, "image": private["image"].copy()}
    poisoned["image"][:, [0, 4, 5]] = 100
    alone = jax.jit(federated_distillation(client(), None).step)
    a, b = (alone(start, {**given, "private": p})[0] for p in (private, poisoned))
    np.testing.assert_allclose(weights(a), weights(b), rtol=1e-6)


def test_the_loop_trains_it_and_resumes(rounds, tmp_path):
    data = batches(rounds, CLIENTS, epochs=1, seed=None)

    def run(folder, steps):
        with training.Checkpoints(folder) as checkpoints:
            return training.fit(
                program(),
                data,
                key=jax.random.key(0),
                steps=steps,
                checkpoints=checkpoints,
            )

    whole, history = run(tmp_path / "a", None)
    assert history[-1]["step"] == ROUNDS
    run(tmp_path / "b", 1)
    resumed, _ = run(tmp_path / "b", None)
    np.testing.assert_array_equal(weights(whole), weights(resumed))


def test_a_round_on_a_mesh_computes_the_same(first, rounds):
    """Four clients on four devices: the first axis is split."""
    data = batches(rounds, CLIENTS, epochs=1, seed=None)
    mesh = training.make_mesh("data")
    key = jax.random.key(0)
    state, _ = training.fit(program(), data, key=key, steps=1, mesh=mesh)
    np.testing.assert_allclose(weights(state), weights(first[2]), rtol=1e-5, atol=1e-6)


def test_rounds_give_each_client_its_own_examples(rounds):
    given = batch(rounds, 1)
    assert given["index"].tolist() == [4, 5, 6, 7]
    assert (given["private"]["label"] == np.arange(CLIENTS)[:, None]).all()
    assert given["private"]["image"].shape == (CLIENTS, 6, 4)
    assert given["proxy"].keys() == {"image"}
    assert given["mask"].shape == (CLIENTS, 3, CLIENTS)
    # The rows of all clients are different proxies, with the masks that are theirs.
    images = given["proxy"]["image"].reshape(12, 4)
    given_masks = given["mask"].reshape(12, CLIENTS)
    all_images = rounds.source.arrays["image"][rounds.proxies]
    found = [np.flatnonzero((all_images == x).all(1))[0] for x in images]
    assert len(set(found)) == 12
    np.testing.assert_array_equal(given_masks, rounds.masks[:, found].T)
    # Another round draws others; one client alone draws the same.
    assert not np.array_equal(
        given["private"]["image"], batch(rounds)["private"]["image"]
    )
    alone = rounds.take(np.array([5]))
    np.testing.assert_array_equal(
        alone["private"]["image"][0], given["private"]["image"][1]
    )


def test_small_clients_repeat_and_transforms_apply():
    image = np.arange(12, dtype=np.uint8).reshape(6, 2, 1, 1)
    label = np.array([0, 0, 1, 1, 1, 1], np.int32)
    source = Source("toy", {"image": image, "label": label}, 2)
    parts = [np.arange(2), np.arange(2, 6)]
    scale = Compose((Normalize((0.5,), (0.5,)),))
    masks = np.ones((2, 4), bool)
    toy = Rounds(source, parts, np.arange(4), masks, 1, 4, 4, transform=scale)
    given = toy.take(np.arange(2))
    assert given["private"]["image"].dtype == np.float32
    values, counts = np.unique(given["private"]["image"][0], return_counts=True)
    np.testing.assert_allclose(values, (np.arange(4) / 255 - 0.5) / 0.5, rtol=1e-5)
    assert counts.tolist() == [2] * 4
    assert toy.fingerprint != dataclasses.replace(toy, seed=1).fingerprint


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_arguments(rounds):
    given = batch(rounds)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"not \['mask'\]: a round is made by"):
        program().init(key, {k: v for k, v in given.items() if k != "mask"})
    with pytest.raises(ValueError, match="for 2 clients: it must be"):
        federated_distillation([client()] * 2).init(key, given)
    broken = {**given, "proxy": {"image": given["proxy"]["image"] * np.nan}}
    with pytest.raises(ValueError, match="not finite"):
        program().init(key, broken)
    with pytest.raises(ValueError, match="distill_steps must be at least 1, got 0"):
        client(distill_steps=0)
    uneven = federated_distillation(client(local_steps=4))
    start = program().init(key, given)
    with pytest.raises(ValueError, match="6 examples, which 4 local_steps cannot"):
        uneven.step(start, given)
    parts, masks = rounds.parts, rounds.masks
    with pytest.raises(ValueError, match=r"masks has shape \(2, 16\), but there are 4"):
        Rounds(rounds.source, parts, rounds.proxies, masks[:2], 1, 6, 12)
    with pytest.raises(ValueError, match=r"multiple of the 4 clients .* got 10"):
        Rounds(rounds.source, parts, rounds.proxies, masks, 1, 6, 10)
    with pytest.raises(ValueError, match="rounds and size must be at least 1, got 0"):
        Rounds(rounds.source, parts, rounds.proxies, masks, 0, 6, 12)


def test_labels_drive_the_local_steps(first, rounds):
    """The local loss is cross-entropy of the client's own labels."""
    given, start, _, metrics = first
    private = given["private"]
    losses = []
    for c, w in enumerate(weights(start)):
        x, y = private["image"][c, :3], private["label"][c, :3]
        losses.append(cross_entropy_loss(jnp.asarray(x @ w), jnp.asarray(y)).mean())
    one_step = federated_distillation(client(local_steps=1), None)
    half = {**given, "private": {k: v[:, :3] for k, v in private.items()}}
    _, found = jax.jit(one_step.step)(start, half)
    np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-5)
    assert metrics["loss"] < found["loss"]
