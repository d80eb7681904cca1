"""Vocabularies: one tokenizer passes whatever the padding, another is sent away."""

from dataclasses import dataclass, replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxkd.data import ByteTokenizer, check_vocabularies, load_tokenizer
from jaxkd.data.text.vocabulary import PROBES


def save(folder, texts, extra=()):
    """Train a byte-level BPE of 280 tokens, as a Hugging Face folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(extra))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    text = ["the other that there then these with quick brown foxes over"] * 5
    return save(tmp_path_factory.mktemp("a") / "english", text)


@pytest.fixture(scope="module")
def german(tmp_path_factory):
    text = ["der die das und mit den großen Zwölf über quer jagen nicht"] * 5
    return save(tmp_path_factory.mktemp("b") / "german", text)


def test_padded_vocabularies_share_the_smaller_width(english):
    assert check_vocabularies(english, str(english)) == 280
    widths = {"teacher_width": 320, "student_width": 304}
    assert check_vocabularies(english, english, **widths) == 304


def test_one_width_but_two_tokenizers_are_refused(english, german):
    tokenizers = [load_tokenizer(folder) for folder in (english, german)]
    assert tokenizers[0].vocabulary == tokenizers[1].vocabulary == 280
    with pytest.raises(ValueError, match=r"different tokenizers.*The quick") as error:
        check_vocabularies(*tokenizers, teacher_width=304, student_width=304)
    assert "methods.aligned_kd()" in str(error.value)
    assert "sequence-level distillation" in str(error.value)


def test_bytes_are_another_tokenizer_than_their_merges(english):
    with pytest.raises(ValueError, match="from token 0 on"):
        check_vocabularies(ByteTokenizer(), english)
    assert check_vocabularies(ByteTokenizer(), ByteTokenizer()) == 259


@dataclass(frozen=True)
class Swapped(ByteTokenizer):
    """Bytes of which two are exchanged."""

    pair: str = "qz"

    def encode(self, text):
        first, second = self.pair
        return super().encode(text.translate({ord(first): second, ord(second): first}))


@pytest.mark.parametrize("pair", ["qz", "07", " \t", "_*", "éö", "жю"])
def test_every_kind_of_character_is_probed(pair):
    with pytest.raises(ValueError, match="different tokenizers"):
        check_vocabularies(ByteTokenizer(), Swapped(pair=pair))


def test_a_longer_encoding_is_different():
    @dataclass(frozen=True)
    class Ended(ByteTokenizer):
        def encode(self, text):
            return [*super().encode(text), 257]

    with pytest.raises(ValueError, match=r"is \[\] to the teacher and \[257\] to the"):
        check_vocabularies(ByteTokenizer(), Ended())


def test_added_tokens_of_one_network_are_beyond_what_they_share(english, tmp_path):
    chat = save(
        tmp_path / "chat",
        ["the other that there then these with quick brown foxes over"] * 5,
        ["<|im_start|>", "<|im_end|>"],
    )
    assert check_vocabularies(chat, english) == 280
    with pytest.raises(ValueError, match=r"teacher_width is 280, but .* 282 tokens"):
        check_vocabularies(chat, english, teacher_width=280)


def test_own_probes_are_read_instead():
    other = replace(Swapped(), pair="qz")
    assert check_vocabularies(ByteTokenizer(), other, probes=["abc"]) == 259
    with pytest.raises(ValueError, match="probes is empty"):
        check_vocabularies(ByteTokenizer(), other, probes=[])
    assert len(set(PROBES)) == len(PROBES)
