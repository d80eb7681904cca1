"""What experiments measure: how a table names each metric, and which end is good."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Attributes:
        name: the column's; with % at its end, fractions are shown in percent.
        higher_is_better: whether the highest is marked as the best, or the lowest;
            None where neither is.
    """

    name: str
    higher_is_better: bool | None = None


METRICS = {
    "last_accuracy": Metric("last %", higher_is_better=True),
    "best_accuracy": Metric("best %", higher_is_better=True),
    "top1": Metric("top-1 %", higher_is_better=True),
    "top5": Metric("top-5 %", higher_is_better=True),
    "nll": Metric("NLL", higher_is_better=False),
    "perplexity": Metric("perplexity", higher_is_better=False),
    "ece": Metric("ECE %", higher_is_better=False),
    "ece10": Metric("ECE₁₀ %", higher_is_better=False),
    "trust": Metric("trust %", higher_is_better=True),
    "agreement": Metric("agreement %", higher_is_better=True),
    "test_accuracy": Metric("test %", higher_is_better=True),
    "teacher_kl": Metric("KL to teacher", higher_is_better=False),
    "reverse_teacher_kl": Metric("reverse KL to teacher", higher_is_better=False),
    "rouge_l": Metric("ROUGE-L %", higher_is_better=True),
    "sinkhorn": Metric("Sinkhorn distance", higher_is_better=False),
    "mt_bench": Metric("MT-Bench", higher_is_better=True),
    "frechet": Metric("Fréchet", higher_is_better=False),
    "sliced_wasserstein": Metric("sliced W2", higher_is_better=False),
    "confidence": Metric("confidence %", higher_is_better=True),
    "speedup": Metric("speed-up", higher_is_better=True),
    "kendall": Metric("Kendall τ", higher_is_better=True),
    "spearman": Metric("Spearman ρ", higher_is_better=True),
    "pearson": Metric("Pearson r", higher_is_better=True),
    "adaptive_ece": Metric("adaptive ECE %", higher_is_better=False),
    "overconfidence": Metric("overconfidence %"),
    "teacher_accuracy": Metric("teacher %", higher_is_better=True),
    "alpha": Metric("mean α"),
    "mse": Metric("MSE", higher_is_better=False),
    "validation_mse": Metric("validation MSE", higher_is_better=False),
    "cover_radius": Metric("cover radius", higher_is_better=False),
    "temperature": Metric("temperature"),
    "bytes": Metric("bytes"),
    "gradient_cosine": Metric("cosine of gradients"),
}
"""Metrics in the order of a table's columns; another's name is its own."""


def declare(**columns: Metric) -> None:
    """Add what one experiment measures, before its claims: later columns of a table.

    Args:
        **columns: by the records' name of the metric.

    Raises:
        ValueError: the name stands for something else already.
    """
    for name, metric in columns.items():
        if METRICS.setdefault(name, metric) != metric:
            raise ValueError(
                f"{name!r} is a column already, {METRICS[name]}: take it, or give "
                f"{metric} another name"
            )


def higher_is_better(metric: str) -> bool | None:
    """Return which end of a metric is good; None where neither is, or it is unknown."""
    return METRICS[metric].higher_is_better if metric in METRICS else None
