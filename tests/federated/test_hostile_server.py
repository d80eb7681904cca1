"""A client that learns nothing from a server that is broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.federated.engine import Participant
from jaxkd.programs.federated import Client
from tests.test_untrusted import BAD_ARRAYS

CLASSES = 3


@pytest.fixture(scope="module")
def participant():
    """Return a participant whose model is a number."""
    steps = Client(
        init=lambda key: jnp.zeros(()),
        learn=lambda state, batch, key: (state, state),
        predict=lambda state, inputs: jnp.full((len(inputs), CLASSES), 1 / CLASSES),
        distill=lambda state, inputs, targets, valid, key: (state, targets.sum()),
        read=lambda batch: batch,
    )
    own, key = np.zeros((2, 4), np.float32), jax.random.key(0)
    found = Participant(0, steps, lambda _: {}, own, lambda p, o: o, key)
    found.meet(np.zeros((3, 4), np.float32), np.zeros(3, np.int32))
    found.contribute(0, np.arange(2))
    return found


FLOATS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("method", "arrays", "reason"),
    [
        ("meet", (np.zeros((3, 5), "f4"), np.zeros(3, "i4")), r"\(3, 5\).* \(3, 4\)"),
        ("meet", (np.zeros((3, 4), "i4"), np.zeros(3, "i4")), "int32"),
        ("meet", (np.full((3, 4), np.inf), np.zeros(3, "i4")), "not finite"),
        ("meet", (np.zeros((3, 4), "f4"), np.zeros(2, "i4")), "owners"),
        ("meet", (np.zeros((3, 4), "f4"), np.zeros(3, "f4")), "owners"),
        ("contribute", (0, np.array([0, 3])), "proxies 0 to 3, but there are 3"),
        ("contribute", (0, np.array([-1, 0])), "proxies -1 to 0"),
        ("contribute", (0, np.array([[0]])), "drawn proxies"),
        ("contribute", (0, np.array([0.0])), "drawn proxies"),
        ("absorb", (FLOATS[:1], np.ones(2, bool)), "targets"),
        ("absorb", (FLOATS, np.ones(3, bool)), "valid"),
        ("absorb", (FLOATS, np.ones(2)), "valid"),
        ("absorb", (FLOATS * np.nan, np.array([True, False])), "not finite"),
    ],
)
def test_a_client_refuses_what_it_cannot_learn_from(
    participant, method, arrays, reason
):
    with pytest.raises(ValueError, match=f"the server .*{reason}"):
        getattr(participant, method)(*arrays)


def test_a_client_does_not_look_at_targets_that_are_not_valid(participant):
    targets = FLOATS.copy()
    targets[0] = np.nan
    assert np.isnan(participant.absorb(targets, np.array([False, True]))[1])


@pytest.mark.parametrize("what", ["80 TB", "a pickle", "objects"])
def test_a_client_refuses_arrays_that_cannot_be_read(participant, what):
    flower = pytest.importorskip("jaxkd.federated.flower", exc_type=ImportError)
    content, reason = BAD_ARRAYS[what]
    client, common = flower.FlowerClient(participant), flower.common
    ins = common.FitIns(common.Parameters([content], ""), {"round": 0})
    with pytest.raises(ValueError, match=f"array 0 cannot be read: .*{reason}"):
        client.fit(ins)
