"""The claims, stated before any result."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

from experiments.cast.config import PRESETS, decayed, trained_for
from jaxkd.evaluation.scaling import fit_scaling_law
from jaxkd.reporting.claims import Claim, all_of, contrast, observed
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.quantities import NotComparable, cell, derived, values_of
from jaxkd.reporting.records import Record
from jaxkd.reporting.tables import metric_name

declare(
    dense_nll=Metric("NLL before pruning"),
    pruning_gap=Metric("pruning gap"),
    int8_cost=Metric("lost to int8"),
    int4_cost=Metric("lost to int4"),
    magnitude_ratio=Metric("dropped / kept %"),
)

SMALL, FULL = "tiny_shakespeare", "llama2-7b"


def falls_along(arms: Sequence[str], metric: str) -> Claim:
    """Claim that a metric falls from each of some arms to the next."""
    return all_of(
        f"{metric_name(metric)} falls along {', '.join(arms)} ({SMALL})",
        [
            contrast(after, before, metric, setting=SMALL, lower=True)
            for before, after in pairwise(arms)
        ],
    )


def law_predicts(budgets: Mapping[str, int], held_out: str, within: float) -> Claim:
    """Claim that a scaling law fitted to some budgets predicts the loss of another.

    A law is fitted to each seed's losses.

    Args:
        budgets: tokens by method.
        held_out: the method that the law is not fitted to.
        within: relative error of its loss, at most.
    """
    fitted = [method for method in budgets if method != held_out]

    def errors(records: Sequence[Record]) -> dict[Hashable, float]:
        losses = {
            method: values_of(records, method, "nll", SMALL) for method in budgets
        }
        seeds = losses[held_out].keys()
        if any(found.keys() != seeds for found in losses.values()):
            raise NotComparable("the budgets have not the same seeds")
        return {
            seed: fit_scaling_law(
                [float(budgets[method]) for method in fitted],
                [losses[method][seed] for method in fitted],
            ).relative_error([float(budgets[held_out])], [losses[held_out][seed]])
            for seed in seeds
        }

    law = derived(f"the scaling law at {held_out}", errors, held_out, SMALL)
    return contrast(law, within, "relative error", setting=SMALL, lower=True)


def small_budgets() -> dict[str, int]:
    """Return the tokens that each of CAST's rows of ``small`` learns from."""
    config = PRESETS["small"]
    steps = {"cast": config.steps, **{trained_for(s): s for s in config.budgets}}
    return {
        method: count * config.corpus.batch_size * config.corpus.length
        for method, count in steps.items()
    }


SWEEP = (decayed(1e-4), decayed(3e-4), "cast")
CLAIMS = [
    contrast("cast", "fixed_mask", "nll", setting=SMALL),
    contrast("cast", cell("one_shot", fixed=True), "nll", setting=SMALL),
    contrast("cast", 0.01, "pruning_gap", setting=SMALL, lower=True),
    contrast("cast", 0.01, "magnitude_ratio", setting=SMALL, lower=True),
    contrast("dense", 0.1, "pruning_gap", setting=SMALL, lower=False),
    falls_along(SWEEP, "magnitude_ratio"),
    falls_along(SWEEP, "pruning_gap"),
    observed("cast", ">", 0.9999, "exact_groups", setting=SMALL),
    observed("cast", "<", 1e-6, "fold_error", setting=SMALL),
    law_predicts(small_budgets(), trained_for(2400), within=0.01),
    contrast("cast", 0.01, "int8_cost", setting=SMALL, lower=True),
    contrast("cast", "fixed_mask", "nll", setting=FULL),
]
