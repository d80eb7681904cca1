"""Variants of blocks: scores, costs, and the choice of one a layer within limits."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.evaluation.cost import parameter_count
from jaxkd.losses import cosine_loss, cross_entropy_loss, kd_loss, normalized_mse_loss
from jaxkd.models import llama
from jaxkd.search import (
    BlockVariant,
    block_costs,
    choose_blocks,
    greedy_blocks,
    largest_blocks,
    pareto_front,
    random_blocks,
    replace_one_scores,
)


@pytest.fixture(scope="module")
def puzzle(load_golden):
    return load_golden("13-puzzle")


@pytest.mark.parametrize("case", ["loss1", "loss2"])
def test_losses_of_the_authors(puzzle, case, x64):
    child, parent, logits, parent_logits = (
        jnp.asarray(puzzle[f"{case}/{name}"], jnp.float64)
        for name in ("child_out", "parent_out", "child_logits", "parent_logits")
    )

    targets = jnp.asarray(puzzle[f"{case}/targets"])

    def mse(x):
        return normalized_mse_loss(x, parent, eps=1e-6)

    def kd(x, temperature):
        # The authors' mean is over the vocabulary too.
        return kd_loss(x, parent_logits, temperature).mean() / x.shape[-1]

    @jax.jit
    def numbers():
        cosine = jax.grad(lambda x: cosine_loss(x, parent).mean())
        return {
            "normalized_mse": mse(child),
            "grad_normalized_mse": jax.grad(mse)(child),
            "cosine_per_sample": cosine_loss(child, parent),
            "grad_cosine_mean": cosine(child),
            "kl_per_sample": kd_loss(logits, parent_logits, 1.0).mean(1),
            "lm_loss_per_sample": cross_entropy_loss(logits, targets).mean(1),
            "logits_kd_T1": kd(logits, 1.0),
            "grad_logits_kd_T1": jax.grad(kd)(logits, 1.0),
            "logits_kd_T2": kd(logits, 2.0),
            "grad_logits_kd_T2": jax.grad(kd)(logits, 2.0),
        }

    for name, value in numbers().items():
        np.testing.assert_allclose(value, puzzle[f"{case}/{name}"], 1e-6, 1e-8)


def test_masked_tokens_do_not_count():
    teacher = jnp.ones((2, 3, 4))
    student = jnp.zeros((2, 3, 4)).at[1].set(jnp.nan)
    assert normalized_mse_loss(student, teacher, jnp.array([1.0, 0.0])) == 1.0


@pytest.mark.parametrize("case", ["mip1", "mip2", "mip3"])
def test_choices_of_the_authors(puzzle, case):
    score = puzzle[f"{case}/score"]
    costs = {name: puzzle[f"{case}/{name}"] for name in ("memory", "runtime")}
    limits = {}
    for name in costs:
        most = float(puzzle[f"{case}/max_{name}"])
        least = float(puzzle.get(f"{case}/min_{name}", -math.inf))
        limits[name] = least, math.inf if math.isnan(most) else most
    found = choose_blocks(score, costs, limits)
    assert (found is not None) == puzzle[f"{case}/feasible"]
    if found:
        np.testing.assert_array_equal(found.variants, puzzle[f"{case}/choice"])
        assert found.score == pytest.approx(puzzle[f"{case}/total_score"], abs=1e-6)


def best_of_all(scores, costs, limits, previous=(), alpha=1.0):
    layers, variants = scores.shape
    at = np.arange(layers)
    best = math.inf
    for choice in itertools.product(range(variants), repeat=layers):
        sums = {name: cost[at, list(choice)].sum() for name, cost in costs.items()}
        within = all(low <= sums[n] <= high for n, (low, high) in limits.items())
        alike = [np.equal(choice, y).sum() for y in previous]
        if within and all(same <= alpha * layers for same in alike):
            best = min(best, scores[at, list(choice)].sum())
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_program_finds_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(4, 4))
    scores[rng.random((4, 4)) < 0.1] = math.inf
    # Whole numbers of many bytes: sums lie on the limits, where tolerances would show.
    bytes_ = rng.integers(0, 9, (4, 4)) * 1e9 + rng.integers(0, 3, (4, 4))
    costs = {"bytes": bytes_, "time": rng.random((4, 4))}
    corner = bytes_[np.arange(4), rng.integers(4, size=4)].sum()
    limits = {"bytes": (1e9, corner), "time": (-math.inf, rng.uniform(1.0, 2.5))}
    found = choose_blocks(scores, costs, limits)
    best = best_of_all(scores, costs, limits)
    assert (found.score if found else math.inf) == pytest.approx(best)
    greedy = greedy_blocks(scores, costs, limits)
    if greedy:
        assert greedy.score >= best - 1e-9
    if not found:
        return
    others = [found.variants]
    second = choose_blocks(scores, costs, limits, previous=others, alpha=0.5)
    best = best_of_all(scores, costs, limits, others, 0.5)
    assert (second.score if second else math.inf) == pytest.approx(best)


def test_baselines():
    scores = np.array([[0.0, 1.0, 3.0], [0.0, 2.0, 2.5]])
    costs = {"parameters": np.array([[4.0, 2.0, 0.0], [6.0, 3.0, 0.0]])}
    limits = {"parameters": (0.0, 6.0)}
    # Layer 0 goes first with 3 of 6, takes 2, and leaves 1 to layer 1.
    searches = greedy_blocks, largest_blocks, choose_blocks
    found = [search(scores, costs, limits) for search in searches]
    assert [x and x.variants for x in found] == [(1, 1), (2, 0), (0, 2)]
    drawn = random_blocks(jax.random.key(0), scores, costs, limits, draws=6)
    assert len({choice.variants for choice in drawn}) == 6
    assert max(choice.totals["parameters"] for choice in drawn) <= 6
    assert greedy_blocks(scores, costs, {"parameters": (-9, -1.0)}) is None
    assert choose_blocks(scores, costs, {"parameters": (-9, -1.0)}) is None


def test_costs_are_those_of_the_networks():
    sizes = {"width": 8, "heads": 4, "head_dim": 2}
    costs = block_costs(
        [BlockVariant(4, 20), BlockVariant(1, 12), BlockVariant("linear", 0)],
        **sizes,
        batch=3,
        prompt=5,
        generated=2,
        weight_bytes=4,
    )

    def counted(layers, kv_heads, hidden):
        shape = {"kv_heads": kv_heads, "head_dim": 2}
        return parameter_count(llama(11, 8, layers, 4, hidden, **shape))

    blocks = [counted(2, *v) - counted(1, *v) for v in ((4, 20), (1, 12))]
    assert costs["parameters"].tolist() == [*blocks, 8 * 8 + 8]
    cache = 3 * 7 * 2 * 2 * 2
    parameters = costs["parameters"] * 4
    assert (costs["bytes"] - parameters).tolist() == [4 * cache, cache, 0]
    # Each of 7 tokens sees those before it and itself: 28 pairs, 2 products each.
    seen = 4 * 4 * 2 * 28
    assert costs["flops"].tolist() == [
        3 * (2 * (blocks[0] - 16) * 7 + seen),
        3 * (2 * (blocks[1] - 16) * 7 + seen),
        3 * 2 * 64 * 7,
    ]
    nothing = block_costs([BlockVariant(0, 0)], **sizes, batch=1, prompt=1)
    assert all(cost == 0 for cost in nothing.values())


def test_scores_of_one_block_at_a_time():
    library = [[1.0, 3.0, math.nan], [2.0, 5.0]]
    scores = replace_one_scores(sum, [1.0, 2.0], library)
    np.testing.assert_array_equal(scores, [[0, 2, math.inf], [0, 3, math.inf]])


def test_front():
    scores = np.array([5.0, 3.0, 3.0, 1.0, 4.0])
    costs = np.array([1.0, 2.0, 2.0, 9.0, 3.0])
    assert pareto_front(scores, costs).tolist() == [0, 1, 3]


SCORES, COSTS = np.zeros((2, 2)), {"bytes": np.ones((2, 2))}


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: choose_blocks(SCORES, {"bytes": np.ones(3)}, {}), "costs.*shape"),
        (lambda: choose_blocks(SCORES, {"b": SCORES * math.nan}, {}), "finite"),
        (lambda: choose_blocks(SCORES - math.inf, COSTS, {}), "above -inf"),
        (lambda: choose_blocks(SCORES, COSTS, {"time": (0, 1)}), "none of costs"),
        (lambda: choose_blocks(SCORES, COSTS, {"bytes": (2, 1)}), "least"),
        (lambda: greedy_blocks(SCORES, COSTS, {"bytes": (0, math.nan)}), "least"),
        (lambda: choose_blocks(SCORES, COSTS, {}, previous=[(0, 2)]), "previous"),
        (lambda: choose_blocks(SCORES, COSTS, {}, alpha=0.0), "alpha"),
        (lambda: largest_blocks(SCORES, COSTS, {}), "size"),
        (lambda: pareto_front(np.ones(2), np.ones(3)), "costs"),
        (lambda: pareto_front(np.array([math.nan]), np.ones(1)), "NaN"),
        (lambda: replace_one_scores(sum, [1.0], []), "library"),
        (lambda: replace_one_scores(sum, [math.nan], [[1.0]]), "parent"),
        (lambda: costs_of(BlockVariant(3, 0)), "kv_heads"),
        (lambda: costs_of(BlockVariant(1, -1)), "hidden"),
        (lambda: normalized_mse_loss(jnp.ones((2, 3)), jnp.ones((2, 4))), "outputs"),
        (lambda: cosine_loss(jnp.ones((2, 3)), jnp.ones((2, 4))), "features"),
    ],
    ids=range(17),
)
def test_bad_input(call, error, unchecked_shapes):
    with pytest.raises(ValueError, match=error):
        call()


def costs_of(variant):
    sizes = {"width": 8, "heads": 4, "head_dim": 2}
    return block_costs([variant], **sizes, batch=1, prompt=1)
