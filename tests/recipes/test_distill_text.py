"""``jaxkd distill text``: from a teacher, a student and a file of chats to a folder."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from jaxkd import interop, recipes
from jaxkd.cli import main
from jaxkd.digests import verify_digests

CHATS = Path(__file__).parents[1] / "golden" / "chat"
TEACHER, STUDENT = CHATS / "teacher", CHATS / "student"


def lines(count):
    """Return chats about sums, as lines of a file."""
    for i in range(count):
        a, b = divmod(i, 8)
        asked, said = f"What is {a} plus {b}?", f"It is {a + b}."
        messages = [("user", asked), ("assistant", said)]
        yield {"messages": [{"role": r, "content": c} for r, c in messages]}


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(24)))
    return path


def arguments(chats, to, **others):
    """Return a small job's arguments; all of them have the same shapes."""
    given = {
        "teacher": str(TEACHER),
        "student": str(STUDENT),
        "data": (chats,),
        "to": to,
        "steps": 2,
        "batch_size": 2,
        "length": 48,
        "answer_length": 12,
        "evaluate_every": 1,
        "rouge_prompts": 2,
    }
    return {**given, **others}


def flags(given):
    """Return arguments as words of the command line."""
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        yield from (f"--{name.replace('_', '-')}", *map(str, values))


def command(chats, to, *words, **others):
    return main(["distill", "text", *flags(arguments(chats, to, **others)), *words])


@pytest.fixture(scope="module")
def written(chats, tmp_path_factory):
    """The folder that a run has written, and what it showed."""
    to = tmp_path_factory.mktemp("run") / "student"
    assert command(chats, to) == 0
    return to


@pytest.mark.slow
def test_the_folder_is_a_model_with_its_report(written):
    names = {path.name for path in written.iterdir()}
    source = {path.name for path in STUDENT.iterdir()}
    own = {"README.md", "SHA256SUMS", "curves.png", "metrics.jsonl"}
    assert names == source | own | {"recipe.yaml", "report.html"}
    verify_digests(written)
    same = ("config.json", "generation_config.json", "tokenizer.json")
    for name in (*same, "tokenizer_config.json", "chat_template.jinja"):
        before, after = ((x / name).read_bytes() for x in (STUDENT, written))
        assert before == after or json.loads(before) == json.loads(after)
    card = (written / "README.md").read_text()
    for said in ("student after", "KL to teacher", "24 records", "Commit: ", "kd"):
        assert said in card.replace("23 records", "24 records")
    assert "student after" in (written / "report.html").read_text()
    network, variables = interop.load_pretrained(written)
    _, before = interop.load_pretrained(STUDENT)
    moved = jax.tree.map(lambda x, y: float(abs(x - y).max()), variables, before)
    assert 0 < max(jax.tree.leaves(moved)) < 0.01
    ids = {"input_ids": np.ones((1, 4), np.int32)}
    assert np.isfinite(network.apply(variables, ids)[0].logits).all()


@pytest.mark.slow
def test_the_call_returns_state_history_and_folder(written, chats, tmp_path):
    found = recipes.distill_text(**arguments(chats, tmp_path / "x"))
    assert found.folder == tmp_path / "x"
    assert [entry["step"] for entry in found.history] == [1, 2]
    assert {"nll", "perplexity", "teacher_kl", "rouge_l"} <= set(found.history[-1])
    rows = {record.method for record in found.records}
    assert rows == {"teacher", "student before", "student after"}
    # The same job from the command line: the same student, bit for bit.
    _, theirs = interop.load_pretrained(written)
    jax.tree.map(np.testing.assert_array_equal, found.state.student, theirs)


@pytest.mark.slow
def test_a_recipe_is_a_file(chats, written, tmp_path, capsys):
    given = arguments(chats, tmp_path / "out", method="gkd")
    words = ["--options", "beta", "0.9", "--no-control", "--print-config"]
    assert main(["distill", "text", *flags(given), *words]) == 0
    file = tmp_path / "recipe.yaml"
    file.write_text(capsys.readouterr().out)
    said = yaml.safe_load(file.read_text())
    assert said["recipe"] == "text"
    assert said["options"] == {"beta": 0.9}
    assert said["optimizer"]["schedule"] == "cosine"
    again = ["distill", "--config", str(file), "--optimizer.learning-rate", "1e-3"]
    assert main([*again, "--print-config"]) == 0
    changed = yaml.safe_load(capsys.readouterr().out)
    assert changed["optimizer"].pop("learning_rate") == 1e-3
    assert said["optimizer"].pop("learning_rate") == 1e-4
    assert changed == said


def test_mistakes_are_named_before_anything_is_read(chats, tmp_path, capsys):
    there = tmp_path / "there"
    there.mkdir()
    for words, message in [
        ({"to": there}, "there exists: name a new folder by --to"),
        ({"method": "gkdd"}, "unknown method 'gkdd': did you mean 'gkd'?"),
        ({"options": ("betta", "1")}, "unknown option of kd 'betta'"),
        ({"student": tmp_path / "none"}, "config.json is missing"),
    ]:
        given = arguments(chats, tmp_path / "out") | words
        assert main(["distill", "text", *flags(given)]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.training").exists()
