"""FF-G2M's losses: the authors' numbers, laws and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import call

from jaxkd import Outputs, combine, methods
from jaxkd.graphs import Graph
from jaxkd.losses import (
    edge_difference_log_probs,
    edge_high_frequency_loss,
    edge_low_frequency_loss,
    kd_loss,
    neighbor_cosine,
)

NODES, CLASSES = 6, 4
SENDERS = jnp.array([0, 1, 1, 2, 4, 0])
RECEIVERS = jnp.array([1, 0, 2, 1, 0, 4])


def logits(seed, scale=3.0, shape=(NODES, CLASSES)):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


LOSSES = {"low": edge_low_frequency_loss, "high": edge_high_frequency_loss}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def terms(label_weight, temperature):
    """Return the authors' five ablation modes, as combinations of methods."""
    labels = methods.labelled_cross_entropy()
    rest = 1 - label_weight
    return [
        methods.ffg2m(label_weight, temperature),
        labels,
        methods.glnn(label_weight),
        combine((label_weight, labels), (rest, methods.low_frequency())),
        combine((label_weight, labels), (rest, methods.high_frequency(temperature))),
    ]


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


@pytest.mark.parametrize("case", range(4))
class TestAuthorsNumbers:
    @pytest.fixture
    def numbers(self, load_golden, case, precision):
        if case == 3 and precision == "float64":
            pytest.skip("the authors' float32 case")
        start = f"case{case}_"
        found = {
            key.removeprefix(start): value
            for key, value in load_golden("45-ffg2m").items()
            if key.startswith(start)
        }
        for name in ("logits_s", "logits_t"):
            found[name] = jnp.asarray(found[name], precision)
        return found

    @pytest.fixture
    def close(self, case, precision):
        # float64 but for summation order; in float32 relative to the largest entry.
        rtol = 1e-9 if precision == "float64" else 1e-5

        def check(result, expected):
            atol = 1e-10 if precision == "float64" else 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)

        return check

    @pytest.mark.slow
    def test_edges(self, numbers, close):
        s, t, tau = numbers["logits_s"], numbers["logits_t"], float(numbers["tau"])
        looped, edges = map(
            jnp.asarray, (numbers["edges_with_loops"], numbers["edges_no_loops"])
        )
        for name, z in (("s", s), ("t", t)):
            found = edge_difference_log_probs(z, *edges, tau)
            close(found, numbers[f"high_logdist_{name}"])
        low, high = (
            edge_low_frequency_loss(s, t, *looped).mean(),
            edge_high_frequency_loss(s, t, *edges, tau).mean(),
        )
        close(low, numbers["loss_low"])
        close(high, numbers["loss_high"])
        close(kd_loss(s, t, 1.0).mean(), numbers["loss_glnn"])

    @pytest.mark.slow
    def test_every_ablation_and_its_gradient(self, numbers, close):
        s, t = numbers["logits_s"], numbers["logits_t"]
        labelled = np.zeros(len(s))
        labelled[numbers["idx_labelled"]] = 1
        batch = {
            "graph": Graph(
                jnp.zeros((len(s), 1)), *jnp.asarray(numbers["edges_no_loops"])
            ),
            "label": jnp.asarray(numbers["labels"]),
            "labelled": jnp.asarray(labelled),
        }
        objectives = terms(float(numbers["lamb"]), float(numbers["tau"]))

        def totals(z):
            key, student, teacher = jax.random.key(0), Outputs(z), Outputs(t)
            found = []
            for method in objectives:
                variables = method.init(key, student, teacher, batch)
                found.append(
                    call(method, variables, student, teacher, batch, key, 0)[0]
                )
            return jnp.stack(found)

        values, gradients = jax.jit(lambda z: (totals(z), jax.jacrev(totals)(z)))(s)
        for mode in range(5):
            close(values[mode], numbers[f"mode{mode}_total"])
            close(gradients[mode], numbers[f"mode{mode}_grad"])


def test_the_student_stands_at_the_senders_end():
    s, t = logits(0), logits(1)
    one = edge_low_frequency_loss(s, t, jnp.array([2]), jnp.array([5]))
    np.testing.assert_allclose(one, kd_loss(s[2:3], t[5:6], 1.0), rtol=1e-6)


def test_identical_student_and_no_edges():
    same = edge_high_frequency_loss(logits(2), logits(2), SENDERS, RECEIVERS)
    np.testing.assert_allclose(same, 0, atol=1e-6)
    none = jnp.zeros(0, int)
    for loss in LOSSES.values():
        assert loss(logits(0), logits(1), none, none).shape == (0,)


def test_a_constant_student_gets_no_high_frequency_gradient():
    def total(student):
        return edge_high_frequency_loss(student, logits(1), SENDERS, RECEIVERS).sum()

    value, gradient = jax.value_and_grad(total)(jnp.ones((NODES, CLASSES)))
    assert value > 0.1
    assert jnp.all(gradient == 0)


some = st.integers(0, 2**31).map(logits)


@settings(max_examples=20, deadline=None)
@given(some, some, st.floats(0.3, 5), st.floats(-20, 20))
def test_laws(s, t, temperature, shift):
    low = edge_low_frequency_loss(s, t, SENDERS, RECEIVERS)
    high = edge_high_frequency_loss(s, t, SENDERS, RECEIVERS, temperature)
    assert jnp.all(low >= -1e-5)
    assert jnp.all(high >= -1e-5)
    # An edge's differences are the same from both of its ends.
    backwards = edge_high_frequency_loss(s, t, RECEIVERS, SENDERS, temperature)
    np.testing.assert_allclose(high, backwards, rtol=1e-4, atol=1e-5)
    # A constant added to all logits cancels in both, to all nodes alike.
    moved = edge_high_frequency_loss(s + shift, t, SENDERS, RECEIVERS, temperature)
    np.testing.assert_allclose(high, moved, rtol=1e-2, atol=1e-3)
    # Scaling logits and temperature together changes nothing.
    scaled = edge_high_frequency_loss(2 * s, 2 * t, SENDERS, RECEIVERS, 2 * temperature)
    np.testing.assert_allclose(high, scaled, rtol=1e-3, atol=1e-5)


def test_a_padded_node_is_as_if_it_were_not_there():
    method = methods.ffg2m(0.4, 1.5)

    def total(keep):
        """The loss on the first nodes and the edges among them."""
        within = (keep > np.asarray(SENDERS)) & (keep > np.asarray(RECEIVERS))
        graph = Graph(jnp.zeros((keep, 1)), SENDERS[within], RECEIVERS[within])
        batch = {
            "graph": graph,
            "label": jnp.arange(keep) % CLASSES,
            "labelled": jnp.ones(keep),
            "mask": jnp.arange(keep) < 4,
        }
        student, teacher = (Outputs(logits(seed)[:keep]) for seed in (0, 1))
        key = jax.random.key(0)
        variables = method.init(key, student, teacher, batch)
        return call(method, variables, student, teacher, batch, key, 0)[0]

    # Nodes 4 and 5 are padding; edges join 4 with node 0 in both directions.
    padded, expected = jax.jit(lambda: (total(6), total(4)))()
    np.testing.assert_allclose(padded, expected, rtol=1e-6)


def test_neighbor_cosine():
    z = jnp.array([[1.0, 0], [0, 2], [3, 0], [5, 5]])
    senders, receivers = jnp.array([0, 2, 1, 0]), jnp.array([2, 0, 0, 3])
    # Node 0 hears (3, 2), node 2 hears (1, 0), node 3 hears (1, 0), node 1 nobody.
    expected = (3 / np.sqrt(13) + 1 + np.sqrt(0.5)) / 3
    np.testing.assert_allclose(neighbor_cosine(z, senders, receivers), expected, 1e-6)
    weights = jnp.array([1.0, 1, 0, 0])
    masked = neighbor_cosine(z, senders, receivers, weights)
    np.testing.assert_allclose(masked, 1, rtol=1e-6)
    assert neighbor_cosine(z, senders, receivers, 0 * weights) == 0


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: edge_low_frequency_loss(
                logits(0), logits(0)[:, :3], SENDERS, RECEIVERS
            ),
            r"\(6, 4\).*\(6, 3\)",
        ),
        (
            lambda: edge_low_frequency_loss(logits(0), logits(1), SENDERS, SENDERS[:2]),
            r"senders has shape \(6,\).*\(2,\)",
        ),
        (
            lambda: edge_high_frequency_loss(
                *2 * (logits(0)[:, :1],), SENDERS, RECEIVERS
            ),
            "1 class",
        ),
        (
            lambda: edge_high_frequency_loss(
                logits(0), logits(1), SENDERS, RECEIVERS, 0.0
            ),
            "temperature must be above 0",
        ),
        (
            lambda: edge_low_frequency_loss(logits(0), None, SENDERS, RECEIVERS),
            "teacher_logits is None",
        ),
        (
            lambda: edge_low_frequency_loss(
                logits(0), logits(1), SENDERS.at[0].set(-1), RECEIVERS
            ),
            "senders holds nodes from -1 to",
        ),
        (
            lambda: edge_high_frequency_loss(
                logits(0), logits(1), SENDERS, RECEIVERS.at[0].set(99)
            ),
            "receivers holds nodes from 0 to 99, but there are 6:",
        ),
        (lambda: methods.ffg2m(1.5), r"label_weight must be in \[0, 1\], got 1.5"),
        (lambda: methods.glnn(-0.1), "label_weight"),
        (lambda: methods.ffg2m(0.5, 0.0), "temperature"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
