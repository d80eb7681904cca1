"""Data sets, transforms, and the grain pipelines that feed programs."""

from jaxkd.data.cached_teacher import CachedTeacher
from jaxkd.data.corpora import (
    TEXT_CLASSIFICATION,
    ag_news,
    mrpc,
    sst2,
    text_windows,
    wikitext2,
)
from jaxkd.data.datasets import (
    DATA_VARIABLE,
    DATASETS,
    cifar10,
    cifar100,
    data_file,
    digits,
    fashion_mnist,
    load,
    mnist,
    tfds_dataset,
)
from jaxkd.data.documents import Documents, load_documents, tokenize
from jaxkd.data.graphs import GRAPHS, GraphDataset, load_graph, repeated
from jaxkd.data.instructions import (
    CHATML,
    LLAMA3,
    PLAIN,
    ChatTemplate,
    chat_prompt,
    tokenize_chats,
)
from jaxkd.data.mixture import mixture_batches, mixture_weights
from jaxkd.data.packing import Packed, pack
from jaxkd.data.padding import (
    LabelledTexts,
    Prompts,
    label_texts,
    left_pad,
    prompts_of_chats,
)
from jaxkd.data.partitions import Kind, build_proxy, partition
from jaxkd.data.pipeline import batches, steps_per_epoch, with_validation
from jaxkd.data.prefetch import Prefetch
from jaxkd.data.records import Part, open_records, texts, tfds_records
from jaxkd.data.semi_supervised import Joined, semi_supervised_batches
from jaxkd.data.served_teacher import ServedTeacher
from jaxkd.data.sources import (
    Conditions,
    Dataset,
    Examples,
    RecordSource,
    Source,
    Subset,
    split,
)
from jaxkd.data.teacher_cache import write_teacher_cache
from jaxkd.data.teacher_targets import (
    TeacherTargets,
    network_targets,
    variables_fingerprint,
)
from jaxkd.data.text import Windows, tiny_shakespeare, token_files
from jaxkd.data.tokenizers import (
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    load_tokenizer,
)
from jaxkd.data.transforms import (
    Compose,
    CropResize,
    CutMix,
    Flip,
    Mixup,
    Normalize,
    PadCrop,
    Transform,
)
from jaxkd.data.vocabulary import check_vocabularies

__all__ = [
    "CHATML",
    "DATASETS",
    "DATA_VARIABLE",
    "GRAPHS",
    "LLAMA3",
    "PLAIN",
    "TEXT_CLASSIFICATION",
    "ByteTokenizer",
    "CachedTeacher",
    "ChatTemplate",
    "Compose",
    "Conditions",
    "CropResize",
    "CutMix",
    "Dataset",
    "Documents",
    "Examples",
    "FileTokenizer",
    "Flip",
    "GraphDataset",
    "Joined",
    "Kind",
    "LabelledTexts",
    "Mixup",
    "Normalize",
    "Packed",
    "PadCrop",
    "Part",
    "Prefetch",
    "Prompts",
    "RecordSource",
    "ServedTeacher",
    "Source",
    "Subset",
    "TeacherTargets",
    "Tokenizer",
    "Transform",
    "Windows",
    "ag_news",
    "batches",
    "build_proxy",
    "chat_prompt",
    "check_vocabularies",
    "cifar10",
    "cifar100",
    "data_file",
    "digits",
    "fashion_mnist",
    "label_texts",
    "left_pad",
    "load",
    "load_documents",
    "load_graph",
    "load_tokenizer",
    "mixture_batches",
    "mixture_weights",
    "mnist",
    "mrpc",
    "network_targets",
    "open_records",
    "pack",
    "partition",
    "prompts_of_chats",
    "repeated",
    "semi_supervised_batches",
    "split",
    "sst2",
    "steps_per_epoch",
    "text_windows",
    "texts",
    "tfds_dataset",
    "tfds_records",
    "tiny_shakespeare",
    "token_files",
    "tokenize",
    "tokenize_chats",
    "variables_fingerprint",
    "wikitext2",
    "with_validation",
    "write_teacher_cache",
]
