"""What a coded teacher's cache takes on disk, and what its rounding costs, by k.

Two sets of distributions: a small chat model of 400 tokens that reads texts, and 32,000
logits that fall off as Zipf's law says, with normal noise of deviation 2. Bytes are of
the cache's files, over the tokens; KL is that of the k tokens and the rest to the same
without rounding, in float64, the mean over tokens.

    python experiments/benchmarks/cache_coding.py --teacher FOLDER --texts FILE
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxkd import data, teachers
from jaxkd.files import write_atomically
from jaxkd.interop import load_pretrained

RESULTS = Path(__file__).with_name("cache_coding.json")
LENGTH, BATCH = 128, 8
DTYPES = ("float16", "coded")


def zipf(rows: int, vocabulary: int = 32_000) -> Iterator[np.ndarray]:
    """Yield log-probabilities (batch, length, vocabulary)."""
    rng = np.random.default_rng(0)
    falling = -1.2 * np.log(np.arange(1, vocabulary + 1, dtype=np.float32))
    shape = BATCH, LENGTH, vocabulary
    for _ in range(0, rows, BATCH):
        yield normalised(falling + 2 * rng.standard_normal(shape, np.float32))


def model(teacher: Path, texts: Path, rows: int) -> Iterator[np.ndarray]:
    """Yield a language model's log-probabilities of the tokens of texts."""
    network, variables = load_pretrained(teacher)
    tokens = data.load_tokenizer(teacher).encode(
        texts.read_text()[: 16 * rows * LENGTH]
    )
    run = jax.jit(lambda ids: network.apply(variables, {"input_ids": ids})[0].logits)
    ids = np.array(tokens[: rows * LENGTH]).reshape(-1, BATCH, LENGTH)
    for batch in ids:
        yield normalised(np.asarray(run(batch), np.float32))


def normalised(logits: np.ndarray) -> np.ndarray:
    """Return log softmax."""
    logits = logits - logits.max(-1, keepdims=True)
    total = np.exp(logits).sum(-1, keepdims=True, dtype=np.float64)
    return logits - np.log(total).astype(np.float32)


def best(batches: Iterator[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best tokens, best first, and their log-probabilities."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for log_probs in batches:
        some = np.argpartition(-log_probs, k, axis=-1)[..., :k]
        values = np.take_along_axis(log_probs, some, -1)
        order = np.argsort(-values, axis=-1, kind="stable")
        found.append(
            tuple(np.take_along_axis(x, order, -1) for x in (some, values))  # type: ignore
        )
    ids, values = (np.concatenate(x) for x in zip(*found, strict=True))
    return ids, values


def divergence(exact: np.ndarray, rounded: np.ndarray) -> float:
    """Return the mean KL of the k and the rest, in float64."""
    p, q = (np.exp(x.astype(np.float64)) for x in (exact, rounded))
    rest = [np.maximum(1 - x.sum(-1), 1e-12) for x in (p, q)]
    total = q.sum(-1) + rest[1]
    terms = (p * (exact - rounded.astype(np.float64))).sum(-1)
    return float((terms + rest[0] * np.log(rest[0] / rest[1]) + np.log(total)).mean())


def measured(ids: np.ndarray, exact: np.ndarray, classes: int, dtype: str) -> Any:
    """Return bytes a token, and the KL of what is read."""
    rows, k = len(ids), ids.shape[-1]
    windows: Any = data.Windows(
        "rows", np.zeros(rows * LENGTH + 1, np.uint16), LENGTH, classes
    )
    stored = exact.astype(np.float32 if dtype == "coded" else dtype)
    kind = np.min_scalar_type(classes - 1)

    def answer(batch: Any) -> dict[str, np.ndarray]:
        chosen = batch["index"]
        return {
            "teacher_ids": ids[chosen].astype(kind),
            "teacher_log_probs": stored[chosen],
        }

    targets = teachers.TeacherTargets("benchmark", {"k": k, "dtype": dtype}, answer)
    with tempfile.TemporaryDirectory() as folder:
        size = teachers.write_teacher_cache(
            folder, windows, targets, batch_size=BATCH, shard_examples=rows
        )
        cached = teachers.CachedTeacher(windows, folder)
        found = cached.take(np.arange(rows))
    assert (found["teacher_ids"] == ids).all()
    return {
        "bytes": round(size / (rows * LENGTH), 1),
        "kl": float(f"{divergence(exact, found['teacher_log_probs']):.2g}"),
    }


def main(teacher: Path, texts: Path, rows: int = 96, commit: bool = False) -> None:
    """Print the table.

    Args:
        teacher: folder of a small language model, with its tokenizer.
        texts: a file of text for it to read.
        rows: of 128 tokens.
        commit: write the results file.
    """
    results = {}
    sets = {
        "chat model, 400 tokens": (400, lambda: model(teacher, texts, rows)),
        "Zipf, 32,000 tokens": (32_000, lambda: zipf(rows)),
    }
    table = Table("distributions", "k", "dtype", "bytes a token", "KL")
    for name, (classes, batches) in sets.items():
        ids, log_probs = best(batches(), 128)
        for k in (8, 32, 64, 128):
            for dtype in DTYPES:
                found = measured(ids[..., :k], log_probs[..., :k], classes, dtype)
                results.setdefault(name, {}).setdefault(str(k), {})[dtype] = found
                table.add_row(name, str(k), dtype, *map(str, found.values()))
    Console().print(table)
    if commit:
        write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
