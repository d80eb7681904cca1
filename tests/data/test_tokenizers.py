"""Text to tokens and back, by bytes and by a tokenizer file."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as File
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxkd import data

CHATS = Path(__file__).parents[1] / "golden" / "chat" / "templates"
TEXTS = ["to be or not to be", "that is the question", "the rest is silence"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level BPE tokenizer with BERT's way to join texts."""
    folder = tmp_path_factory.mktemp("tokenizer")
    file = File(models.BPE())
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    file.train_from_iterator(TEXTS, trainer)
    file.post_processor = processors.BertProcessing(("</s>", 1), ("<s>", 0))
    file.enable_padding(length=50)
    file.enable_truncation(3)
    file.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    return folder


@pytest.mark.slow
@given(st.text())
def test_bytes_come_back(text):
    for tokenizer in (data.ByteTokenizer(), data.ByteTokenizer(specials=False)):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert all(token < 256 <= tokenizer.vocabulary for token in tokens)


def test_bytes_have_three_special_tokens():
    tokenizer = data.ByteTokenizer()
    special = (tokenizer.bos, tokenizer.eos, tokenizer.pad)
    assert special == (256, 257, 258)
    assert tokenizer.vocabulary == 259
    assert tokenizer.decode([256, *b"ab", 257, 258]) == "ab"
    assert tokenizer.decode([0xC3]) == "\ufffd"
    plain = data.ByteTokenizer(specials=False)
    assert (plain.bos, plain.eos, plain.pad) == (None, None, None)
    with pytest.raises(ValueError, match=r"token 256 is none.*0 to 255"):
        plain.decode([256])


@given(st.text(), st.none() | st.text(), st.integers(3, 20))
def test_pairs_of_bytes_are_cut_to_a_length(text, second, length):
    tokens, types = data.ByteTokenizer().classifier_tokens(text, second, length)
    sizes = [len(part.encode()) for part in (text, second) if part is not None]
    assert len(tokens) == len(types) == min(length, 1 + sum(sizes) + len(sizes))
    assert tokens.count(256) == 1
    assert tokens.count(257) == len(sizes)
    assert tokens[0] == 256
    assert tokens[-1] == 257
    # What is cut is cut off the longer: neither is shorter than the other's half.
    kept = [types.count(i) - 1 for i in range(len(sizes))]
    kept[0] -= 1
    whole = [have == want for have, want in zip(kept, sizes, strict=True)]
    assert all(whole) or max(kept) - min(kept) <= 1 or whole.count(False) == 1


def test_a_file_is_read_as_it_is_and_without_its_padding(folder):
    tokenizer = data.load_tokenizer(folder)
    assert isinstance(tokenizer, data.Tokenizer)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, 2)
    size = File.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    assert tokenizer.vocabulary == size > 256
    tokens = tokenizer.encode("to be or not to be é")
    assert 3 < len(tokens) < 22
    assert tokenizer.decode([0, *tokens, 1]) == "to be or not to be é"
    assert tokenizer.encode_batch(["that", "is"]) == [
        tokenizer.encode("that"),
        tokenizer.encode("is"),
    ]
    assert tokenizer.encode("<|im_end|>") == [4]
    with pytest.raises(ValueError, match=f"token {size} is none"):
        tokenizer.decode([size])


def test_a_file_joins_pairs_its_own_way(folder):
    tokenizer = data.load_tokenizer(folder)
    first, second = (tokenizer.encode(text) for text in ("that is", "the question"))
    tokens, types = tokenizer.classifier_tokens("that is", "the question", 50)
    assert tokens == [0, *first, 1, *second, 1]
    assert types == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    cut, _ = tokenizer.classifier_tokens("that is", None, 3)
    assert cut == [0, first[0], 1]
    assert tokenizer.encode("that is") == first


def test_folders_that_are_none_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        data.load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer that can be read"):
        data.load_tokenizer(tmp_path)
    path.write_bytes((folder / "tokenizer.json").read_bytes())
    assert data.load_tokenizer(tmp_path).bos is None
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<begin>"}')
    with pytest.raises(ValueError, match=r"no token '<begin>'.*its bos_token"):
        data.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged"):
        data.load_tokenizer(tmp_path)


def turns(before, after, **names):
    """Return a template's turns, by role, for names that differ from the roles."""
    roles = {"system": "system", "user": "user", "assistant": "assistant", **names}
    return {role: (before.format(name), after) for role, name in roles.items()}


SHOUTED = {role: role.upper() for role in ("system", "user", "assistant")}
TEMPLATES = {
    "chatml": data.CHATML,
    "chatml_bos_added": data.CHATML,
    "no_system_bos_added": data.ChatTemplate(
        turns("<start>{}\n", "<end>\n", assistant="model")
    ),
    "bos_in_template_bos_added": data.ChatTemplate(
        turns("[{}] ", "<|im_end|>", **SHOUTED), bos=True
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_and_texts_begin_as_transformers_has_them(name):
    """The golden folders all name <|im_start|> as bos, and half of them add it."""
    tokenizer = data.load_tokenizer(CHATS / name)
    cases = json.loads((CHATS / name / "io.json").read_text())
    (plain,) = (case for case in cases if case["case"] == "plain text")
    added = [1] if name.endswith("bos_added") else []
    assert plain["ids"][: len(added)] == added
    assert data.tokens_around(tokenizer) == (added, [])
    document = data.tokenize("x", [plain["text"]], tokenizer)
    assert document.tokens.tolist() == [*plain["ids"], tokenizer.eos]
    assert data.chat_prompt(plain["text"], tokenizer) == plain["ids"]
    for case in cases:
        messages = case.get("messages")
        # Where a template ends in a space, an answer's first token would join it.
        joined = name.startswith("bos_in_template") and case["case"] != "one"
        if messages is None or "ids" not in case or joined:
            continue
        if case["add_generation_prompt"]:
            found = data.chat_prompt(messages, tokenizer, TEMPLATES[name])
            assert found == case["ids"]
        elif messages[-1]["role"] == "assistant":
            record = {"messages": messages}
            chats = data.tokenize_chats("x", [record], tokenizer, TEMPLATES[name])
            assert chats.tokens.tolist() == case["ids"]


@pytest.mark.parametrize(
    ("config", "around"),
    [
        ({}, ([0], [1])),
        ({"add_bos_token": True}, ([0], [])),
        ({"add_bos_token": False, "add_eos_token": True}, ([], [1])),
        ({"add_bos_token": False}, ([], [])),
    ],
)
def test_the_config_overrules_what_the_file_adds(folder, tmp_path, config, around):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    names = json.loads((folder / "tokenizer_config.json").read_text())
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**names, **config, "add_prefix_space": True}))
    tokenizer = data.load_tokenizer(tmp_path)
    assert data.tokens_around(tokenizer) == around
    plain = data.load_tokenizer(folder)
    assert tokenizer.encode("that is") == plain.encode(" that is")
    (begin, end), text = around, plain.encode(" that is")
    tokens, _ = tokenizer.classifier_tokens("that is", None, 50)
    assert tokens == [*begin, *text, *end]
    # The file's BERT begins a pair once, transformers' rule each of its texts.
    tokens, types = tokenizer.classifier_tokens("that is", "that is", 50)
    again = begin if config else []
    assert tokens == [*begin, *text, *end, *again, *text, *end]
    assert sum(types) == len([*again, *text, *end])
