"""A network as a model of lm-evaluation-harness, on a local task without network."""

import importlib.util
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.evaluation import harness
from jaxkd.evaluation.harness import harness_model
from jaxkd.evaluation.likelihood import likelihood_evaluator
from jaxkd.generation import GREEDY, generate

BYTES = data.ByteTokenizer()
INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")


@pytest.mark.parametrize("length", [1, 4, 7, 20])
def test_windows_hold_every_token_once_with_the_context_there_is(length):
    text = list(range(10))
    found = harness._windows(([99], text), length)
    assert [token for _, part in found for token in part] == text
    for context, part in found:
        assert len(context) >= 1
        assert len(context) + len(part) - 1 <= length
        whole = [99, *text]
        end = whole.index(part[-1]) + 1
        assert whole[end - len(part) - len(context) : end] == context + part
    # The last has all the context that fits.
    context, part = found[-1]
    assert len(context) + len(part) - 1 == min(length, 10)


def test_contexts_that_are_too_long_lose_their_begin():
    assert harness._last_tokens(([1, 2, 3, 4], [5, 6]), 4) == ([2, 3, 4], [5, 6])
    assert harness._last_tokens(([1], [5, 6]), 4) == ([1], [5, 6])
    with pytest.raises(ValueError, match="a continuation has 5 tokens, but max_length"):
        harness._last_tokens(([1], [5] * 5), 4)


def test_texts_end_at_the_first_stop():
    assert harness._until("ab\ncd. e", ["\n", "."]) == "ab"
    assert harness._until("ab. cd", ".") == "ab"
    assert harness._until("ab", ()) == "ab"


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxkd-distill\[lm-eval\]'"):
        harness_model(models.llama(259, 16, 1, 4, 24), {}, BYTES)


@pytest.fixture(scope="module")
def network():
    return models.llama(259, 16, 2, 4, 24, kv_heads=2)


@pytest.fixture(scope="module")
def variables(network):
    return jax.jit(network.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def model(network, variables):
    return harness_model(
        network, variables, BYTES, batch_size=2, max_length=32, max_new_tokens=5
    )


def request(*arguments):
    return SimpleNamespace(args=arguments)


@needs_harness
def test_texts_are_those_that_generate_writes(model, network, variables):
    prompts = ["to be", "a", "or not"]
    settings = {"until": ["\x00"], "do_sample": False, "temperature": 0.0}
    found = model.generate_until([request(p, settings) for p in prompts])
    for prompt, text in zip(prompts, found, strict=True):
        tokens = generate(
            network,
            variables,
            {"input_ids": np.array([[256, *prompt.encode()]], np.int32)},
            max_new_tokens=5,
            sampling=GREEDY,
            eos=257,
        )
        row = np.asarray(tokens.tokens)[0][np.asarray(tokens.mask)[0]]
        assert text == BYTES.decode(row.tolist()).split("\x00")[0]
    with pytest.raises(ValueError, match="request 0 wants samples"):
        model.generate_until([request("a", {"do_sample": True})])
    with pytest.raises(ValueError, match="max_gen_toks is 32, but max_length 32"):
        model.generate_until([request("a", {"max_gen_toks": 32})])


@needs_harness
def test_a_whole_text_is_the_sum_of_its_tokens(model, network, variables):
    (found,) = model.loglikelihood_rolling([request("to be or not")])
    score = likelihood_evaluator(network, 1)
    (whole,) = score(variables, [([256], [*b"to be or not"])])
    assert found == pytest.approx(whole.log_probability, rel=1e-5)


@needs_harness
def test_the_harness_runs_a_local_task(model, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = [
        {"q": "2+2=", "options": ["4", "four hundred"], "answer": i % 2, "t": "4"}
        for i in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {tmp_path / "rows.jsonl"}}}
test_split: test
"""
    (tmp_path / "choice.yaml").write_text(
        source
        + """
task: local_choice
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: options
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
    )
    (tmp_path / "write.yaml").write_text(
        source
        + """
task: local_write
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: t
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match}]
"""
    )
    (tmp_path / "whole.yaml").write_text(
        source
        + """
task: local_whole
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list: [{metric: byte_perplexity}]
"""
    )
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=["local_choice", "local_write", "local_whole"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    results = found["results"]
    # One byte is likelier than twelve, so "4" is chosen each time.
    assert results["local_choice"]["acc,none"] == 0.5
    assert results["local_write"]["exact_match,none"] == 0
    (total,) = model.loglikelihood_rolling([request("2+2=")])
    assert results["local_whole"]["byte_perplexity,none"] == pytest.approx(
        np.exp(-total / 4), rel=1e-5
    )
