"""``jaxkd distill text``: from a teacher, a student and a file of chats to a folder."""

import errno
import json
import math
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict
from tokenizers import Tokenizer, models

from jaxkd import interop, recipes
from jaxkd.cli import main
from jaxkd.digests import verify_digests
from jaxkd.models import llama
from jaxkd.recipes import runs
from jaxkd.recipes.text_teachers import ServerConfig
from jaxkd.training import JsonLines

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
    # The card's recipe is the file's.
    assert (written / "recipe.yaml").read_text() in card
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


@pytest.mark.slow
def test_a_stopped_run_goes_on(written, chats, tmp_path, monkeypatch, capsys):
    to = tmp_path / "x"
    write = JsonLines.write

    def stopped(writer, step, metrics):
        write(writer, step, metrics)
        if step == 2:
            raise KeyboardInterrupt

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "write", stopped)
        assert command(chats, to) == 130
    assert not to.exists()
    assert command(chats, to, seed=1) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "holds a stopped run of another recipe: seed was 0, is 1" in said
    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_pages", full)
        assert command(chats, to) == 1
    assert "No space left on device); what was there is kept" in capsys.readouterr().err
    assert not to.exists()
    # Nothing is trained again: the checkpoint is the last step's.
    assert command(chats, to) == 0
    theirs, ours = (interop.load_pretrained(folder)[1] for folder in (written, to))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


WAYS = {
    "sft": {"teacher": None, "control": True},
    "jensen_shannon": {"options": {"beta": 0.1}, "compute": "bfloat16"},
    "taid": {"accumulate": 2, "keep": "last"},
    "gkd": {},
    "minillm": {},
    "distillm": {},
    "uld": {},
    "aligned": {},
    "own answers, aligned": {"method": "aligned", "options": {"student_share": 1.0}},
    "topk": {"options": {"k": 4}},
    "lora": {"method": "kd", "lora": True},
    "part": {"method": "kd", "train": r"blocks\.mlp\..*"},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_moves_the_student(chats, tmp_path, way):
    given = arguments(chats, tmp_path / "x", evaluate_every=2, rouge_prompts=0)
    found = recipes.distill_text(**(given | {"method": way} | WAYS[way]))
    _, before = interop.load_pretrained(STUDENT)
    _, after = interop.load_pretrained(found.folder)
    same = jax.tree.map(lambda x, y: bool((x == y).all()), before, after)
    moved = {path for path, still in flatten_dict(same["params"]).items() if not still}
    assert moved
    assert (found.folder / "adapter").is_dir() == (way == "lora")
    if way == "part":
        assert all("mlp" in path for path in moved)


@pytest.mark.slow
@pytest.mark.slow
def test_a_teacher_may_cap_its_logits(chats, tmp_path):
    """As Gemma 2 does: no product of features with a head has them."""
    _, spec = interop.load_pretrained(STUDENT)[0].spec
    capped = llama(**{**spec, "soft_caps": {"logits": 5.0}})
    teacher = tmp_path / "teacher"
    start = capped.init(jax.random.key(0))
    interop.save_pretrained(teacher, capped, start, tokenizer=STUDENT)
    how = {"teacher": str(teacher), "options": {"label_weight": 0.5}}
    given = arguments(chats, tmp_path / "x", evaluate_every=2, rouge_prompts=0, **how)
    found = recipes.distill_text(method="kd", **given)
    assert found.history[-1]["train_loss"] > 0


@pytest.mark.slow
def test_a_cache_takes_the_teachers_place(chats, tmp_path):
    cache = ["cache-teacher", str(TEACHER), str(chats), "--to", str(tmp_path / "cache")]
    assert main([*cache, "--length", "48", "--k", "4"]) == 0
    found = recipes.distill_text(
        **arguments(
            tmp_path / "cache" / "documents",
            tmp_path / "x",
            teacher=tmp_path / "cache",
            method="topk",
            rouge_prompts=0,
        )
    )
    assert {record.method for record in found.records} == {
        "student before",
        "student after",
    }


class Server(BaseHTTPRequestHandler):
    """A teacher with OpenAI's completions endpoint, to which all tokens are alike."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        entry = {"logprob": -math.log(400)}
        places = [None]
        for token in asked["prompt"][1:]:
            best = {*range(asked["prompt_logprobs"]), token}
            places.append({str(i): entry | {"rank": 1} for i in sorted(best)})
        reply = {"choices": [{"index": 0, "text": "a", "prompt_logprobs": places}]}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"student_share": 1.0, "reverse": True}], ids=str
)
def test_a_server_takes_the_teachers_place(chats, tmp_path, url, options):
    found = recipes.distill_text(
        **arguments(
            chats,
            tmp_path / "x",
            teacher=url,
            server=ServerConfig("large", k=4),
            method="topk",
            options=options,
            rouge_prompts=0,
        )
    )
    assert 0 < found.history[-1]["train_topk_kd"] < 1


@pytest.fixture
def copied(tmp_path):
    """A student of which files may be changed."""
    shutil.copytree(STUDENT, tmp_path / "copied")
    return tmp_path / "copied"


def refused(given, capsys):
    assert main(["distill", "text", *flags(given)]) == 1
    return " ".join(capsys.readouterr().err.split())


def test_models_that_do_not_go_together(chats, copied, tmp_path, capsys):
    given = arguments(chats, tmp_path / "out", student=copied)
    words = {"a": 0, "[UNK]": 1, "<|im_start|>": 2, "<|im_end|>": 3, "<|endoftext|>": 4}
    own = (copied / "tokenizer.json").read_bytes()
    Tokenizer(models.WordLevel(words, "[UNK]")).save(str(copied / "tokenizer.json"))
    said = refused(given, capsys)
    assert "teacher and student have different tokenizers" in said
    assert "--method aligned or --method uld" in said
    (copied / "tokenizer.json").write_bytes(own)
    (copied / "chat_template.jinja").unlink()
    said = refused(given, capsys)
    assert "has no chat template" in said
    assert "give --template chatml|llama3|plain, or a file" in said
    said = refused(given | {"template": "chatlm"}, capsys)
    assert "template 'chatlm' is neither a file nor one of chatml" in said
    said = refused(given | {"length": 1000}, capsys)
    assert "is 777 tokens (max_position_embeddings" in said


def test_data_that_do_not_do(tmp_path, capsys, unchecked_shapes):
    given = arguments(tmp_path / "a.jsonl", tmp_path / "out")
    good = json.dumps(next(lines(1)))
    for content, others, message in [
        ("", {}, "a.jsonl is empty: give a record a line"),
        (f"{good}\n", {}, "a.jsonl is one alone, and none could be held out"),
        (f"{good}\n\n{good[:-9]}\n", {}, "a.jsonl: line 3 is no JSON"),
        (f'{good}\n{{"question": 1}}\n', {}, "record 1 of 'a.jsonl': it has"),
        ('{"text": "ab"}\n' * 9, {"method": "gkd"}, "the records are plain texts"),
        (f"{good}\n" * 3, {"batch_size": 4}, "lower --batch-size, or give more data"),
    ]:
        (tmp_path / "a.jsonl").write_text(content)
        assert message in refused(given | others, capsys)
    assert not (tmp_path / "out.training").exists()


def test_teachers_that_do_not_do(chats, tmp_path, capsys):
    given = arguments(chats, tmp_path / "out")
    del given["teacher"]
    assert "method kd learns from a teacher" in refused(given, capsys)
    server = given | {"teacher": "http://127.0.0.1:9", "method": "topk"}
    assert "name one by --server.model" in refused(server, capsys)
    (tmp_path / "teacher.json").write_text("{}")
    cache = given | {"teacher": tmp_path}
    assert "method kd needs more: take --method topk" in refused(cache, capsys)
    own = {"method": "topk", "options": ("student_share", "1.0")}
    assert "the student writes others" in refused(cache | own, capsys)


def test_mistakes_are_named_before_anything_is_read(chats, tmp_path, capsys):
    there = tmp_path / "there"
    there.mkdir()
    for words, message in [
        ({"to": there}, "there exists: name a new folder by --to"),
        ({"method": "gkdd"}, "unknown method 'gkdd': did you mean 'gkd'?"),
        ({"method": "gdk"}, "unknown method 'gdk': did you mean 'gkd'?"),
        (
            {"method": "fitnets"},
            "method 'fitnets' needs layers, data or another method",
        ),
        ({"options": ("betta", "1")}, "unknown option of kd 'betta'"),
        ({"student": tmp_path / "none"}, "config.json is missing"),
    ]:
        given = arguments(chats, tmp_path / "out") | words
        assert main(["distill", "text", *flags(given)]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.training").exists()
