"""Chat templates of folders: what transformers makes of them, and hostile ones."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.text import templates

CHATS = Path(__file__).parents[1] / "golden" / "chat" / "templates"
FOLDERS = sorted(path.name for path in CHATS.iterdir())
USER = [{"role": "user", "content": "Hi."}]
BOTH = [*USER, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize("name", FOLDERS)
def test_conversations_are_written_as_transformers_writes_them(name):
    template = data.load_chat_template(CHATS / name)
    tokenizer = data.load_tokenizer(CHATS / name)
    cases = json.loads((CHATS / name / "io.json").read_text())
    compared = 0
    for case in (case for case in cases if "messages" in case):
        messages, answer = case["messages"], case["add_generation_prompt"]
        if "error" in case:
            with pytest.raises(
                ValueError, match=r"does not take the conversation: [SR]"
            ):
                template.render(messages, answer)
            continue
        assert template.render(messages, answer) == case["text"]
        assert tokenizer.encode(case["text"]) == case["ids"]
        if answer:
            assert data.chat_prompt(messages, tokenizer, template) == case["ids"]
        elif messages[-1]["role"] == "assistant":
            record = {"messages": messages}
            found = data.tokenize_chats("x", [record], tokenizer, template)
            assert found.tokens.tolist() == case["ids"]
            if "assistant_mask" in case:
                assert found.trained is not None
                np.testing.assert_array_equal(found.trained, case["assistant_mask"])
            compared += 1
    assert compared >= 2


def test_answers_are_what_follows_the_text_that_asks_for_them():
    template = data.load_chat_template(CHATS / "chatml")
    assert template.stretches([*BOTH, *BOTH]) == 2 * [
        ("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes.<|im_end|>\n", True),
    ]
    # A tokenizer without places in the text gets the stretches one by one.
    found = data.tokenize_chats(
        "x", [{"messages": BOTH}], data.ByteTokenizer(), template
    )
    assert found.trained is not None
    assert found.trained.sum() == len("Yes.<|im_end|>\n")
    last = data.JinjaTemplate("{{ messages[-1].content }}")
    with pytest.raises(
        ValueError, match=r"record 0 .*writes message 1 .*generation %}"
    ):
        data.tokenize_chats("x", [{"messages": BOTH}], data.ByteTokenizer(), last)
    with pytest.raises(ValueError, match="the assistant must have the last word"):
        data.tokenize_chats("x", [{"messages": USER}], data.ByteTokenizer(), template)
    with pytest.raises(
        ValueError, match=r"a message must be a dict with a role, got \{"
    ):
        data.tokenize_chats("x", [{"messages": [{}]}], data.ByteTokenizer(), template)


def test_a_message_cannot_mark_itself_as_an_answer():
    template = data.load_chat_template(CHATS / "generation_marked")
    forged = [{"role": "user", "content": f"a{templates.BEGIN}b{templates.END}"}]
    stretches = template.stretches([*forged, *BOTH])
    assert [text for text, learnt in stretches if learnt] == ["Yes.<|im_end|>"]
    assert stretches[0][0].startswith("<|im_start|>user\nab<|im_end|>")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ raise_exception.__globals__['__builtins__'] }}", "'__globals__'"),
        ("{% set _ = messages.append(1) %}", "'append' of 'list' object is unsafe"),
        ("{{ strftime_now.__code__.co_code }}", "access to attribute '__code__'"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{% for i in range(10**9) %}{% endfor %}", "[Rr]ange too big"),
        (
            "{% for i in range(99999) %}{{ messages[0].content * 9999 }}{% endfor %}",
            "16,7",
        ),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages | tojson + 1 }}", "concatenate"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot be rendered"),
        ("{% for", "is no template of Jinja"),
    ],
)
def test_a_hostile_template_reaches_nothing(source, why):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"the template .*({why})"):
        data.JinjaTemplate(source).render(USER, answer=True)
    assert time.process_time() - start < 5


def test_json_is_written_as_for_a_model():
    template = data.JinjaTemplate("{{ messages | tojson }}")
    messages = [{"role": "user", "content": "<é & 'b'>"}]
    assert json.loads(template.render(messages, answer=False)) == messages
    assert "<é & 'b'>" in template.render(messages, answer=False)


def test_where_a_folder_keeps_its_template(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no chat template.* such as CHATML"):
        data.load_chat_template(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    for source, text in (("{{ bos_token }}x", "<s>x"), (named, "d")):
        config.write_text(
            json.dumps({"chat_template": source, "bos_token": {"content": "<s>"}})
        )
        assert data.load_chat_template(tmp_path).render(USER, answer=True) == text
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ValueError, match="chat_template is no text"):
        data.load_chat_template(tmp_path)
    config.write_text("[]")
    with pytest.raises(ValueError, match="holds a list, not an object"):
        data.load_chat_template(tmp_path)
    config.write_text("{}")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is no text"):
        data.load_chat_template(tmp_path)
