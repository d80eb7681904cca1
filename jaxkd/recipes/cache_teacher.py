"""The command ``jaxkd cache-teacher``: what a teacher says of texts, on disk."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from jaxkd import teachers
from jaxkd.arguments import checked
from jaxkd.network import Network
from jaxkd.recipes.text_data import chat_template, documents_of
from jaxkd.types import Variables

Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEACHER-FOLDER")]
Texts = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXTS")
]


@checked()
def cache_teacher(
    teacher: Folder,
    texts: Texts,
    /,
    to: Path,
    length: int = 1024,
    k: int = 32,
    full: bool = False,
    dtype: Literal["coded", "float16", "float32"] | None = None,
    vocabulary: int | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
    mesh: str = "one",
    batch_size: int = 8,
    shard_examples: int = 4096,
    field: str = "text",
    template: str | None = None,
) -> None:
    """Run a language model over texts, and keep what it says of every next token.

    The same command goes on with a cache that was not finished. Students then train
    without the teacher, on teachers.CachedTeacher(data.pack(data.load_documents(TO /
    "documents"), LENGTH), TO) and by methods.topk_kd().

    Args:
        teacher: folder of a language model, as interop.load_pretrained reads it, with
            its tokenizer.json.
        texts: files of texts or conversations, as data.open_records reads them (.jsonl,
            .txt, .tsv, .parquet, .array_record), or one folder of data.Documents.save.
        to: the folder of the cache.
        length: tokens of the rows that the texts are packed into.
        k: how many of the teacher's best tokens to keep.
        full: keep all its logits instead, for methods.cached.
        dtype: of the log-probabilities, or logits, on disk; by default coded, or all
            logits in float16.
        vocabulary: the teacher's first logits that the student has too; None for all.
        compute: dtype that the teacher computes in.
        mesh: how it lies on this process's devices, a name of training.MESHES.
        batch_size: rows at a time.
        shard_examples: rows in one file.
        field: that holds the text of a record.
        template: of conversations, chatml, llama3, plain or a file of Jinja's; None for
            the teacher's own.
    """
    from jaxkd import data
    from jaxkd.interop import load_pretrained
    from jaxkd.training import make_mesh

    console = Console()
    devices = make_mesh(mesh, jax.local_devices() if jax.process_count() > 1 else None)
    network, variables = load_pretrained(teacher, mesh=devices, dtype=compute)
    if len(texts) == 1 and texts[0].is_dir():
        documents = data.load_documents(texts[0])
    else:
        tokenizer = data.load_tokenizer(teacher)
        records = data.open_records(*texts)
        documents = documents_of(
            " ".join(path.name for path in texts),
            records,
            tokenizer,
            lambda: chat_template(template, teacher),
            field,
        )
    _check_width(network, variables, documents.vocabulary)
    source: Any = data.pack(documents, length)
    targets = teachers.network_targets(
        network,
        variables,
        k=None if full else k,
        dtype=dtype,
        vocabulary=vocabulary,
        mesh=devices,
    )
    started = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("rows", total=len(source))
        size = teachers.write_teacher_cache(
            to,
            source,
            targets,
            batch_size=batch_size,
            shard_examples=shard_examples,
            progress=lambda done: progress.update(bar, completed=done),
        )
    if jax.process_index() == 0:
        documents.save(to / "documents")
    tokens = int(source.sizes.sum())
    console.print(
        f"{len(source):,} rows of {length} ({tokens:,} tokens) in "
        f"{time.perf_counter() - started:.0f} s; {size:,} bytes, "
        f"{size / tokens:.1f} a token; teacher {targets.fingerprint}; written: {to}",
        soft_wrap=True,
    )


def _check_width(network: Network, variables: Variables, vocabulary: int) -> None:
    """Refuse texts with tokens that the teacher does not know."""
    one = {"input_ids": np.zeros((1, 1), np.int32)}
    logits = jax.eval_shape(network.apply, variables, one)[0].logits
    if logits.shape[-1] < vocabulary:
        raise ValueError(
            f"the texts have tokens up to {vocabulary - 1}, but the teacher's logits "
            f"are {logits.shape[-1]}: tokenise them with the teacher's own tokenizer"
        )
