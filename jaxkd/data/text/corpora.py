"""Real texts below JAXKD_DATA, as data sets: to classify, and to learn to write."""

import numpy as np

from jaxkd.arguments import checked
from jaxkd.data.datasets import data_file
from jaxkd.data.records import open_records, texts
from jaxkd.data.sources import Dataset
from jaxkd.data.text.padding import LabelledTexts, label_texts
from jaxkd.data.text.tokenizers import ByteTokenizer, Tokenizer
from jaxkd.data.text.windows import Windows
from jaxkd.registry import constructors

BYTES = ByteTokenizer()


def _classified(
    name: str,
    files: tuple[str, str],
    columns: tuple[str, ...],
    classes: int,
    tokenizer: Tokenizer,
    lengths: tuple[int, ...],
) -> Dataset:
    def split(kind: str, file: str) -> LabelledTexts:
        records = open_records(data_file(f"text/{file}.tsv.xz"))
        first, *second = (list(texts(records, column)) for column in columns)
        return label_texts(
            f"{name}/{kind}",
            first,
            [int(label) for label in texts(records, "label")],
            tokenizer,
            classes=classes,
            lengths=lengths,
            seconds=second[0] if second else None,
        )

    return Dataset(split("train", files[0]), split("test", files[1]))


@checked()
def sst2(tokenizer: Tokenizer, lengths: tuple[int, ...] = (32, 64)) -> Dataset:
    """Return SST-2's sentences (1 is positive); the validation part is the test.

    Socher et al. 2013, "Recursive Deep Models for Semantic Compositionality Over a
    Sentiment Treebank", in GLUE's version (Wang et al. 2019, arXiv:1804.07461). The
    files are ``$JAXKD_DATA/text/sst2_train.tsv.xz`` and ``sst2_validation.tsv.xz``.

    Args:
        tokenizer: of the classifier.
        lengths: as of `LabelledTexts`.
    """
    files = ("sst2_train", "sst2_validation")
    return _classified("sst2", files, ("sentence",), 2, tokenizer, lengths)


@checked()
def mrpc(tokenizer: Tokenizer, lengths: tuple[int, ...] = (64, 128)) -> Dataset:
    """Return MRPC's pairs of sentences (1 if they say the same).

    Dolan and Brockett 2005, "Automatically Constructing a Corpus of Sentential
    Paraphrases". The files are ``$JAXKD_DATA/text/mrpc_train.tsv.xz`` and
    ``mrpc_test.tsv.xz``.

    Args:
        tokenizer: of the classifier.
        lengths: as of `LabelledTexts`.
    """
    files, columns = ("mrpc_train", "mrpc_test"), ("sentence1", "sentence2")
    return _classified("mrpc", files, columns, 2, tokenizer, lengths)


@checked()
def ag_news(tokenizer: Tokenizer, lengths: tuple[int, ...] = (64, 128)) -> Dataset:
    """Return AG's news (0 World, 1 Sports, 2 Business, 3 Sci/Tech).

    Zhang, Zhao, LeCun 2015, arXiv:1509.01626. The files are
    ``$JAXKD_DATA/text/agnews_train_subset.tsv.xz``, which may hold a part of the
    120,000 training texts, and ``agnews_test.tsv.xz``.

    Args:
        tokenizer: of the classifier.
        lengths: as of `LabelledTexts`.
    """
    files = ("agnews_train_subset", "agnews_test")
    return _classified("ag_news", files, ("text",), 4, tokenizer, lengths)


@checked()
def wikitext2(length: int, tokenizer: Tokenizer = BYTES) -> Dataset:
    """Return windows of WikiText-2's validation part, to train on, and of its test.

    Merity et al. 2016, arXiv:1609.07843. The files are
    ``$JAXKD_DATA/text/wikitext2_valid.txt.xz`` and ``wikitext2_test.txt.xz``.

    Args:
        length: tokens of a window.
        tokenizer: of the models.
    """

    def split(kind: str, file: str) -> Windows:
        path = data_file(f"text/wikitext2_{file}.txt.xz")
        text = "".join(texts(open_records(path, part="file")))
        return text_windows(f"wikitext2/{kind}", text, length, tokenizer)

    return Dataset(split("train", "valid"), split("test", "test"))


@checked()
def text_windows(
    name: str, text: str, length: int, tokenizer: Tokenizer = BYTES
) -> Windows:
    """Return windows of one long text.

    Args:
        name: for messages and results.
        text: of all windows.
        length: tokens of a window.
        tokenizer: of the models.

    Raises:
        ValueError: the text is too short for a window.
    """
    kind = np.min_scalar_type(tokenizer.vocabulary - 1)
    tokens = np.array(tokenizer.encode(text), kind)
    return Windows(name, tokens, length, tokenizer.vocabulary)


TEXT_CLASSIFICATION = constructors(globals(), Dataset, besides=("wikitext2",))
"""Data sets to classify, by name: ``(tokenizer, lengths) -> Dataset``."""
