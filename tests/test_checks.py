"""Bad names and bad batches are answered with what is wrong and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxkd.checks import check_batch, check_labels, unknown_name
from jaxkd.graphs import edge_dot


@pytest.mark.parametrize(
    ("given", "valid", "message"),
    [
        (
            "cnm",
            ["mlp", "cnn"],
            "unknown model 'cnm': did you mean 'cnn'? Valid: mlp, cnn",
        ),
        (
            "resnet",
            ["lenet", "resnet110", "resnet20"],
            "unknown model 'resnet': did you mean 'resnet20'? Valid: lenet, resnet110, "
            "resnet20",
        ),
        ("xyz", iter(["mlp", "cnn"]), "unknown model 'xyz'. Valid: mlp, cnn"),
        ("mlp", {}, "unknown model 'mlp'. Valid: none"),
    ],
)
def test_unknown_name_offers_the_closest_and_lists_all(given, valid, message):
    assert unknown_name("model", given, valid) == message


def make_batch(**changes):
    batch = {
        "image": np.ones((4, 2, 2, 1), np.float32),
        "label": np.array([0, 1, 2, 1]),
    }
    return {**batch, **changes}


def image(value, dtype=np.float32):
    array = np.ones((4, 2, 2, 1), dtype)
    array[2, 1, 0, 0] = value
    return array


@pytest.mark.parametrize("batch", [{}, np.ones(3), [1, 2], None], ids=repr)
def test_no_dict_of_arrays_is_refused(batch, unchecked_shapes):
    with pytest.raises(ValueError, match=r"batch must be a dict of arrays.*got"):
        check_batch(batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.ones((0, 2)), "label": np.ones(0, int)}, "the batch is empty"),
        ({"image": [], "label": 3}, r"the batch is empty: \{\}. Give every array"),
        (
            {"label": np.zeros(3, int)},
            r"unequal length: .*batch\['image'\].: 4, .*batch\['label'\].: 3",
        ),
        ({"graph": {"nodes": np.ones((5, 2))}}, r"batch\['graph'\]\['nodes'\].: 5"),
    ],
)
def test_empty_and_unequal_arrays_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_batch(make_batch(**changes))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_a_value_that_is_not_finite_is_named(value, dtype):
    message = rf"batch\['image'\] holds 1 values .*\({value}\) in example 2: clean"
    with pytest.raises(ValueError, match=message):
        check_batch(make_batch(image=image(value, dtype)))
    with pytest.raises(ValueError, match=message):
        check_batch(make_batch(image=jnp.asarray(image(value, dtype).astype("f4"))))


def test_infinities_that_cancel_are_found():
    bad = image(np.inf)
    bad[3] = -np.inf
    with pytest.raises(ValueError, match=r"holds 5 values .*\(inf\) in example 2"):
        check_batch(make_batch(image=bad))


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float64, 1.5e308), (np.float32, 3e38), (np.float16, 6e4)]
)
def test_finite_values_whose_sum_overflows_are_accepted(dtype, value):
    with np.errstate(over="raise"):
        check_batch(make_batch(image=np.full((4, 8), value, dtype)), 3)


def test_arrays_that_cannot_hold_nan_and_scalars_are_accepted():
    check_batch(
        make_batch(
            token=np.arange(4), flag=np.ones(4, bool), text=np.array(list("abcd"))
        ),
        3,
    )
    check_batch(make_batch(scale=np.float32(2.0)), 3)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            [0, 1, -1, 5],
            r"batch\['label'\] has label -1 at example 2.* 0 to 2: correct",
        ),
        ([0, 3, 1, 1], "has label 3 at example 1"),
        ([0.0, 1.0, 2.0, 1.0], "must hold integer class indices, got float64"),
        ([True, False, True, True], "must hold integer class indices, got bool"),
        ([[0, 1], [2, 1], [0, -100], [1, 1]], r"label -100 at example 2.*batch\['mask"),
    ],
)
def test_labels_out_of_range_are_refused(label, message):
    batch = make_batch(label=np.array(label))
    with pytest.raises(ValueError, match=message):
        check_batch(batch, 3)
    check_batch(batch)  # the number of classes is not known


def test_probabilities_are_labels():
    label = np.array([[1, 0, 0], [0.3, 0.7, 0], [0.2, 0.2, 0.6], [0, 0, 1]], np.float32)
    check_batch(make_batch(label=label), 3)


@pytest.mark.parametrize("row", [[0.5, 0.4, 0], [1.5, -0.5, 0], [np.nan, 0.5, 0.5]])
def test_rows_that_are_no_probabilities_are_refused(row):
    label = np.array([[1, 0, 0], [0.5, 0.5, 0], row, [0, 0, 1]])
    message = (
        r"label must hold class indices, or probabilities that sum to 1; example 2"
    )
    with pytest.raises(ValueError, match=message):
        check_labels("label", label, 3)


def test_probabilities_of_other_classes_are_refused():
    message = r"got float64 of shape \(4, 2\); probabilities have .*\(examples, 3\)"
    with pytest.raises(ValueError, match=message):
        check_batch(make_batch(label=np.full((4, 2), 0.5)), 3)


def test_masked_tokens_carry_a_valid_label():
    label = np.array([[0, 2], [1, 0], [2, 0], [1, 1]])
    mask = np.array([[1, 1], [1, 0], [1, 0], [0, 0]])
    check_batch(make_batch(label=label, mask=mask), 3)


def test_traced_arrays_are_passed_over_but_their_lengths_are_not():
    @jax.jit
    def checked(batch):
        check_batch(batch, 2)
        check_labels("label", batch["label"], 2)
        return batch["label"].sum()

    assert checked(make_batch(image=image(np.nan), label=np.array([9, 9, 9, 9]))) == 36
    with pytest.raises(ValueError, match="unequal length"):
        checked(make_batch(label=np.zeros(3, int)))


def test_signatures_are_checked_while_tests_run():
    ends, x = jnp.zeros(3, int), jnp.zeros((3, 1, 2))
    assert edge_dot(ends, ends, x, x).shape == (3, 1)
    for bad in (
        (ends, ends, x, x[0]),
        (ends, ends[1:], x, x),
        (ends, ends, x, x[:, 0]),
    ):
        with pytest.raises(TypeCheckError, match=r"graphs\.edge_dot"):
            edge_dot(*bad)
