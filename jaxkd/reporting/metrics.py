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
    "nll": Metric("NLL", higher_is_better=False),
    "perplexity": Metric("perplexity", higher_is_better=False),
    "dense_nll": Metric("NLL before pruning"),
    "pruning_gap": Metric("pruning gap"),
    "int8_cost": Metric("lost to int8"),
    "int4_cost": Metric("lost to int4"),
    "magnitude_ratio": Metric("dropped / kept %"),
    "ece": Metric("ECE %", higher_is_better=False),
    "ece10": Metric("ECE₁₀ %", higher_is_better=False),
    "trust": Metric("trust %", higher_is_better=True),
    "agreement": Metric("agreement %", higher_is_better=True),
    "test_accuracy": Metric("test %", higher_is_better=True),
    "teacher_kl": Metric("KL to teacher", higher_is_better=False),
    "reverse_teacher_kl": Metric("reverse KL to teacher", higher_is_better=False),
    "target_nearer": Metric("target nearer by", higher_is_better=True),
    "sinkhorn": Metric("Sinkhorn distance", higher_is_better=False),
    "mt_bench": Metric("MT-Bench", higher_is_better=True),
    "high_frequency_kl": Metric("high-frequency KL", higher_is_better=False),
    "exit1_accuracy": Metric("exit 1 %"),
    "exit2_accuracy": Metric("exit 2 %"),
    "exit3_accuracy": Metric("exit 3 %"),
    "exit4_accuracy": Metric("exit 4 %"),
    "cka_stage1": Metric("CKA stage 1 %"),
    "cka_stage2": Metric("CKA stage 2 %"),
    "cka_stage3": Metric("CKA stage 3 %"),
    "cka_stage4": Metric("CKA stage 4 %"),
    "frechet": Metric("Fréchet", higher_is_better=False),
    "sliced_wasserstein": Metric("sliced W2", higher_is_better=False),
    "teacher_mse": Metric("MSE to teacher", higher_is_better=False),
    "confidence": Metric("confidence %", higher_is_better=True),
    "condition_accuracy": Metric("condition %", higher_is_better=True),
    "speedup": Metric("speed-up", higher_is_better=True),
    "kendall": Metric("Kendall τ", higher_is_better=True),
    "spearman": Metric("Spearman ρ", higher_is_better=True),
    "pearson": Metric("Pearson r", higher_is_better=True),
    "best_score": Metric("best score", higher_is_better=True),
    "chosen_accuracy": Metric("accuracy of the chosen %", higher_is_better=True),
    "filter_precision": Metric("filter precision %", higher_is_better=True),
    "filter_recall": Metric("filter recall %", higher_is_better=True),
    "upload_kb": Metric("upload kB a round"),
    "filter_ms": Metric("filter ms", higher_is_better=False),
    "adaptive_ece": Metric("adaptive ECE %", higher_is_better=False),
    "overconfidence": Metric("overconfidence %"),
    "teacher_accuracy": Metric("teacher %", higher_is_better=True),
    "entropy_gap": Metric("entropy gap", higher_is_better=False),
    "alpha": Metric("mean α"),
    "alpha_right": Metric("α, teacher right"),
    "alpha_wrong": Metric("α, teacher wrong"),
    "mean_accuracy": Metric("mean of rounds %", higher_is_better=True),
    "round0_accuracy": Metric("round 0 %"),
    "round1_accuracy": Metric("round 1 %"),
    "round2_accuracy": Metric("round 2 %"),
    "round3_accuracy": Metric("round 3 %"),
    "round4_accuracy": Metric("round 4 %"),
    "round5_accuracy": Metric("round 5 %"),
    "mse": Metric("MSE", higher_is_better=False),
    "validation_mse": Metric("validation MSE", higher_is_better=False),
    "cover_radius": Metric("cover radius", higher_is_better=False),
    "worst_ratio": Metric("worst ratio", higher_is_better=False),
    "mean_ratio": Metric("mean ratio", higher_is_better=False),
    "worst_gain": Metric("worst ratio below KD's by", higher_is_better=True),
    "hardest_share": Metric("first share of the hardest %"),
    "weight_change": Metric("change of weights"),
    "weight_slack": Metric("slack of weights"),
    "temperature": Metric("temperature"),
    "validation_ece10": Metric("validation ECE₁₀ %", higher_is_better=False),
    "kept_best": Metric("kept its best %"),
    "top5_mass": Metric("top-5 mass %"),
    "bytes": Metric("bytes"),
    "gradient_cosine": Metric("cosine of gradients"),
    "entropy": Metric("entropy"),
    "mixed_entropy": Metric("entropy of mixed"),
    "logit_deviation": Metric("logit deviation"),
    "mixed_confidence": Metric("confidence of mixed %"),
    "fgsm_accuracy": Metric("FGSM %", higher_is_better=True),
    "noisy_accuracy": Metric("noisy %", higher_is_better=True),
    "detection_auc": Metric("AUC", higher_is_better=True),
    "right_weight": Metric("weight, label right"),
    "wrong_weight": Metric("weight, label wrong"),
    "class_weight_gap": Metric("gap of classes"),
    "correlation": Metric("correlation", higher_is_better=True),
    "slope": Metric("slope"),
    "classes_lost": Metric("classes lost %"),
    "weight_error": Metric("error of weights", higher_is_better=False),
    "query_accuracy": Metric("queries right %", higher_is_better=True),
    "support": Metric("k*/n %"),
}
"""Metrics in the order of a table's columns; another's name is its own."""


def higher_is_better(metric: str) -> bool | None:
    """Return which end of a metric is good; None where neither is, or it is unknown."""
    return METRICS[metric].higher_is_better if metric in METRICS else None
