"""Scores of examples: closed forms in float64, brute-force gradients, hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import Network, selection
from jaxkd.selection import Seen

RNG = np.random.default_rng(0)
RUNS, EXAMPLES, CLASSES, WIDTH = 3, 7, 4, 5
Z = RNG.normal(0, 2, (RUNS, EXAMPLES, CLASSES)).astype("f4")
H = RNG.normal(size=(RUNS, EXAMPLES, WIDTH)).astype("f4")
Y = RNG.integers(0, CLASSES, EXAMPLES).astype("i4")
ERROR = np.exp(Z, dtype="f8")
ERROR = ERROR / ERROR.sum(-1, keepdims=True) - np.eye(CLASSES)[Y]


def test_el2n_and_the_last_layers_grand():
    seen = Seen(Y, Z, H)
    lengths = np.linalg.norm(ERROR, axis=-1)
    np.testing.assert_allclose(selection.el2n_scores(seen), lengths.mean(0), rtol=1e-5)
    # The gradient of W and b in W h + b is the error's outer product with [h; 1].
    ones = np.concatenate([H, np.ones((RUNS, EXAMPLES, 1))], -1)
    gradients = ERROR[..., None] * ones[..., None, :]
    right = np.linalg.norm(gradients.reshape(RUNS, EXAMPLES, -1), axis=-1).mean(0)
    np.testing.assert_allclose(selection.grand_scores(seen), right, rtol=1e-5)
    norms = RNG.random((RUNS, EXAMPLES))
    full = selection.grand_scores(seen._replace(gradient_norms=norms))
    np.testing.assert_allclose(full, norms.mean(0), rtol=1e-6)


def test_an_impossible_class_counts_nothing():
    more = np.concatenate([Z, np.full((RUNS, EXAMPLES, 1), -np.inf, "f4")], -1)
    for score in (selection.el2n_scores, selection.aum_scores):
        np.testing.assert_allclose(score(Seen(Y, more)), score(Seen(Y, Z)), rtol=1e-6)


def test_forgetting_counts_falls_from_right_to_wrong():
    right = np.array([[0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0]], bool)
    found = selection.forgetting_scores(Seen(np.zeros(4, int), right=right))
    assert found.tolist() == [1, 2, 0, np.inf]
    logits = np.where(right[..., None], [1.0, 0], [0, 1.0])
    assert selection.forgetting_scores(Seen(np.zeros(4, int), logits)).tolist() == (
        found.tolist()
    )


def test_memorization_is_a_difference_of_rates():
    right = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1], [0, 0, 0]], bool)
    inside = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 1, 1]], bool)
    found = selection.memorization_scores(
        Seen(np.zeros(3, int), right=right, in_subset=inside)
    )
    np.testing.assert_allclose(found, [1 - 0.5, 0.5 - 0, np.nan])


def test_aum_is_the_mean_margin_of_the_label():
    own = np.take_along_axis(Z, np.broadcast_to(Y, Z.shape[:2])[..., None], -1)[..., 0]
    others = np.where(np.eye(CLASSES, dtype=bool)[Y], -np.inf, Z).max(-1)
    np.testing.assert_allclose(
        selection.aum_scores(Seen(Y, Z)), (own - others).mean(0), rtol=1e-5
    )


def test_moderate_examples_are_at_their_classes_median_distance():
    # Class 0 has distances 1, 1, 2 and 2 from its mean; class 2 has one example.
    features = np.array([[1.0], [-1], [-2], [2], [9]], "f4")
    labels = np.array([0, 0, 0, 0, 2])
    found = selection.moderate_scores(Seen(labels, features=features[None]))
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, 0.5, 0], atol=1e-6)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(16, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x.reshape(len(x), -1)))))


def test_any_network_is_observed_and_its_gradients_are_those_of_one_example(source):
    network = Network.from_nnx(Net, taps={"hidden": "norm"})
    runs = [network.init(jax.random.key(i)) for i in range(2)]
    seen = selection.observe(network, runs, source, tap="hidden", batch_size=6)
    assert seen.labels.tolist() == source.arrays["label"].tolist()
    image = jnp.asarray(source.arrays["image"])
    outputs, _ = network.apply(runs[1], image, taps=("hidden",))
    np.testing.assert_allclose(seen.logits[1], outputs.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        seen.features[1], outputs.features["hidden"], rtol=1e-4, atol=1e-5
    )
    norms = selection.gradient_norms(network, runs, source, batch_size=6)
    whole = selection.gradient_norms(network, runs, source, batch_size=1000)
    np.testing.assert_allclose(norms, whole, rtol=1e-5)

    def loss(params, i):
        z = network.apply({**runs[1], "params": params}, image[i : i + 1])[0].logits
        return -jax.nn.log_softmax(z)[0, source.arrays["label"][i]]

    for i in (0, 19):
        gradient = jax.grad(loss)(runs[1]["params"], i)
        squares = [np.sum(np.square(x, dtype="f8")) for x in jax.tree.leaves(gradient)]
        np.testing.assert_allclose(norms[1, i], np.sqrt(sum(squares)), rtol=1e-4)


@pytest.mark.parametrize(
    ("score", "seen", "message"),
    [
        ("el2n_scores", Seen(Y), "seen.logits is None"),
        ("el2n_scores", Seen(Y, Z[:, :3]), r"shape \(3, 3, 4\), but there are 7"),
        ("el2n_scores", Seen(Y + 3, Z), "seen.labels has label"),
        ("grand_scores", Seen(Y, Z), "seen.features is None"),
        ("forgetting_scores", Seen(Y, Z[:1]), "1 evaluation.* at least 2"),
        ("memorization_scores", Seen(Y, Z), "seen.in_subset is None"),
        ("aum_scores", Seen(0 * Y, Z[..., :1]), "1 class"),
    ],
)
def test_what_is_missing_is_named(score, seen, message):
    with pytest.raises(ValueError, match=message):
        getattr(selection, score)(seen)


def test_a_source_without_labels_is_refused(source):
    from jaxkd.data import Source

    bare = Source("bare", {"image": source.arrays["image"]}, 3)
    network = Network.from_nnx(Net)
    with pytest.raises(ValueError, match="'bare' has no label"):
        selection.observe(network, [network.init(jax.random.key(0))], bare)
    with pytest.raises(ValueError, match="variables is empty"):
        selection.gradient_norms(network, [], source)
