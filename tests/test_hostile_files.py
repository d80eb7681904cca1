"""Files made to harm: every reader gives a value, or the name of the file as an error.

A good file of each format is changed in many ways. Where a format has no digest, a
changed file may still be read, and give something else (a changed pixel is a pixel):
``pytest -rP`` shows how many do.
"""

import gzip
import json
import lzma
import pickle
import shutil
import tarfile
import time
from io import BytesIO
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders
from tokenizers import models as kinds

from jaxkd import data, models, untrusted
from jaxkd.cli import main
from jaxkd.files import inside, plain
from jaxkd.interop import (
    folders,
    load_pretrained,
    load_weights,
    save_pretrained,
    save_weights,
    torch_weights,
)
from jaxkd.interop.shards import Shards, write_shards
from jaxkd.reporting.plans import read_plans
from jaxkd.reporting.records import Record
from jaxkd.reporting.results import read_results
from jaxkd.reporting.run import read_part
from jaxkd.teachers.cache import read_manifest
from jaxkd.training.ahead import StepPlan
from jaxkd.training.metrics import Csv, JsonLines

GOLDEN = Path(__file__).parent / "golden" / "hf"
RECORDS = [{"text": f"text {i} é", "label": i} for i in range(9)]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS).encode()
ARRAYS = {"train_x": np.zeros((2, 4, 4), np.uint8), "train_y": np.arange(2)}
ARRAYS |= {"test_x": ARRAYS["train_x"], "test_y": ARRAYS["train_y"]}
RECORD = Record("kd", 0, "nll", 1.0, 1.0, "mlp", (1.0, 2.0))
PLAN = StepPlan("v5e:2x4", 8, {"data": 8}, 1, 1, 1, 1.0, 1.0, {"all-reduce": 1.0}, 1.0)
RESULTS = {
    **{"schema": 1, "experiment": "a", "preset": "small", "config": {"epochs": 3}},
    **{"versions": {"jax": "1"}, "machine": {"cores": 2}, "commit": None},
    **{"dirty": False, "date": "2026", "seconds": 1.0, "records": [RECORD.__dict__]},
}
MANIFEST = {
    **{"teacher": "a", "data": "b", "examples": 9, "batch_size": 1},
    **{"shard_examples": 4, "arrays": {"teacher_logits": ["<f4", [3]]}},
}


def mlp(folder):
    network = models.mlp(4, widths=[3], classes=2)
    variables = jax.tree.map(np.asarray, network.init(jax.random.key(0)))
    save_pretrained(folder, network, variables)
    (folder / "SHA256SUMS").unlink()  # As others write folders.


def index(folder):
    arrays = {name: np.arange(3.0) for name in ("a", "b")}
    sizes = {name: array.nbytes for name, array in arrays.items()}
    write_shards(folder, sizes, arrays.__getitem__, 30)


def npz(path):
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **ARRAYS)


def resnet(path):
    shapes = {"conv1.weight": (4, 3, 3, 3), "fc.weight": (2, 4)}
    np.savez(path, **{name: np.ones(shape, "f4") for name, shape in shapes.items()})


def documents(path):
    path.parent.mkdir(exist_ok=True)
    offsets = np.array([0, 3, 9])
    data.Documents("a", np.arange(9), offsets, 9).save(path.parent)
    (path.parent / "SHA256SUMS").unlink()  # As older ones are.


def parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)


def arrow(path):
    table = pyarrow.Table.from_pylist(RECORDS)
    with pyarrow.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table)


def tar(path):
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (9, 0, 200)).save(buffer, "PNG")
    with tarfile.open(path, "w") as archive:
        for name in ("a.png", "a.cls", "b.png", "b.cls"):
            content = buffer.getvalue() if name[2:] == "png" else b"1"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


def read_images(path):
    source = data.open_images(path, 4)
    return source.take(np.arange(min(len(source), 9)))


def array_record(path):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for line in LINES.splitlines():
        writer.write(line)
    writer.close()


def tokenizer(path):
    file = Tokenizer(kinds.BPE({"a": 0, "b": 1, "ab": 2, "<s>": 3}, [("a", "b")]))
    file.decoder = decoders.ByteLevel()
    file.save(str(path))
    named = {"bos_token": "<s>", "eos_token": {"content": "<s>"}}
    path.with_name("tokenizer_config.json").write_text(json.dumps(named))


def cifar(path):
    path.parent.mkdir(exist_ok=True)
    buffer = BytesIO()
    Image.new("RGB", (32, 64)).save(buffer, "WEBP", lossless=True)
    packed = np.frombuffer(buffer.getvalue(), np.uint8)
    part = {"webp": packed, "offsets": np.array([0, len(packed)]), "y": np.arange(2)}
    both = {f"{s}_{k}": v for s in ("train", "test") for k, v in part.items()}
    np.savez(path, **both)


def encode(path):
    found = data.load_tokenizer(path.parent)
    return found.bos, found.eos, found.decode(found.encode("ab a"))


def read_documents(path):
    found = data.load_documents(path.parent)
    return found.name, [found[i] for i in range(len(found))]


def records(path):
    return list(data.open_records(path))


def written(value):
    return lambda path: path.write_text(json.dumps(value))


FORMATS = {
    # The file, how it is written, how it is read.
    "m/config.json": (lambda p: mlp(p.parent), lambda p: load_pretrained(p.parent)),
    "m/model.safetensors": (
        lambda p: mlp(p.parent),
        lambda p: load_pretrained(p.parent),
    ),
    "model.safetensors.index.json": (
        lambda p: index(p.parent),
        lambda p: [*map((s := Shards(p.parent)).read, s.tensors)],
    ),
    "weights.safetensors": (
        lambda p: save_weights(p, {"a": [np.ones(2), (np.ones(3),)]}),
        load_weights,
    ),
    "resnet.npz": (resnet, torch_weights._read),
    "resnet.safetensors": (
        lambda p: save_file({"conv1.weight": np.ones((4, 3, 3, 3))}, p),
        torch_weights._read,
    ),
    "vision/mnist.npz": (npz, lambda p: data.mnist().train.arrays),
    "vision/cifar10.npz": (cifar, lambda p: data.cifar10().train.arrays),
    "d/documents.json": (documents, read_documents),
    "d/tokens.npy": (documents, read_documents),
    "d/offsets.npy": (documents, read_documents),
    "a.jsonl": (lambda p: p.write_bytes(LINES), records),
    "a.jsonl.gz": (lambda p: p.write_bytes(gzip.compress(LINES, mtime=0)), records),
    "a.jsonl.xz": (lambda p: p.write_bytes(lzma.compress(LINES)), records),
    "a.tsv": (lambda p: p.write_text("text\tlabel\na\t1\nb\t2\n"), records),
    "a.txt": (lambda p: p.write_text("one\ntwo\n"), records),
    "a.parquet": (parquet, records),
    "a.array_record": (array_record, records),
    "a.arrow": (arrow, records),
    "a.csv": (lambda p: p.write_text('text,label\na,"1"\nb,2\n'), records),
    "a.tar": (tar, read_images),
    "s/state.json": (
        lambda p: (
            (p.parent.mkdir(exist_ok=True), arrow(p.parent / "a.arrow"))
            and p.write_text('{"_data_files": [{"filename": "a.arrow"}]}')
        ),
        lambda p: records(p.parent),
    ),
    "tokenizer.json": (tokenizer, encode),
    "tokenizer_config.json": (
        lambda p: tokenizer(p.with_name("tokenizer.json")),
        encode,
    ),
    "results.json": (written(RESULTS), read_results),
    "records.json": (written([RECORD.__dict__]), lambda p: read_part(p.parent)),
    "compiled.json": (written({"a": PLAN.__dict__}), read_plans),
    "teacher.json": (written(MANIFEST), lambda p: read_manifest(p.parent)),
    "metrics.jsonl": (
        lambda p: p.write_text('{"step": 1, "loss": 2}\n{"step": 2}\n'),
        lambda p: JsonLines(p).start(5),
    ),
    "metrics.csv": (
        lambda p: p.write_text("step,metric,value\n1,loss,2\n2,loss,1\n"),
        lambda p: Csv(p).start(5),
    ),
}

DEEP = "[" * 100_000 + "]" * 100_000
VALUES = (
    *(None, True, -1, 0, 3, 10**6, 10**30, 0.5, float("nan"), 1e300, "", "x" * 10**5),
    *("../x", "/etc/passwd", "\x1b[2J", "<i8", "|O", [], [[]], {}, {"a": 1}, ["a"]),
)


def replaced(value, rng):
    """Return JSON with one of its values, or a key, replaced by another kind."""
    places = []

    def visit(item):
        if isinstance(item, dict | list):
            keys = item if isinstance(item, dict) else range(len(item))
            for key in keys:
                places.append((item, key))
                visit(item[key])

    visit(value)
    if places and rng.random() < 0.9:
        item, key = places[rng.integers(len(places))]
        new = VALUES[rng.integers(len(VALUES))]
        if rng.random() < 0.2:
            del item[key]
        else:
            item[key] = new
        return value
    return VALUES[rng.integers(len(VALUES))]


def hostile(good, rng, count):
    """Yield contents of files made from a good one."""
    yield from (b"", b"\0", b"null", b"[]", b"{}", DEEP.encode(), b"\xff" * 64)
    yield from (b"\xff" * 8 + good[8:], b"\x00\x00\x00\x08\0\0\0\0" + good, good * 2)
    yield from (
        pickle.dumps({"a": 1}),
        gzip.compress(good),
        b"\x93NUMPY\x01\x00\xff\xff",
    )
    yield f'{{"a": {DEEP}}}\n'.encode()
    try:
        parsed = json.loads(good)
    except ValueError:
        parsed = None
    for i in range(count):
        if parsed is not None and i % 4:
            yield json.dumps(replaced(json.loads(good), rng)).encode()
            continue
        content = bytearray(good)
        at, end = sorted(rng.integers(len(good) + 1, size=2).tolist())
        match rng.integers(6):
            case 0:
                del content[at:]
            case 1:
                del content[at:end]
            case 2:
                content[at:end] = rng.bytes(end - at)
            case 3:
                content[at:at] = rng.bytes(9)
            case _:
                for place in rng.integers(len(good), size=1 + i % 3):
                    content[place] ^= 1 << rng.integers(8)
        yield bytes(content)


@pytest.fixture
def folder(tmp_path, monkeypatch, unchecked_shapes):
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    return tmp_path


def refusal(read, path):
    """Return the message with which a file is refused, or None if it is read."""
    begun = time.perf_counter()
    try:
        found = read(path)
    except (ValueError, FileNotFoundError) as error:  # An index names other files.
        message = str(error)
        assert str(path.parent) in message
        assert len(message) < 2000
        assert "\x1b" not in message
        return message, None
    finally:
        assert time.perf_counter() - begun < 20
    return None, found


@pytest.mark.parametrize("name", FORMATS)
def test_a_hostile_file_is_named_or_read(name, folder):
    write, read = FORMATS[name]
    path = folder / name
    write(path)
    good, expected = path.read_bytes(), repr(read(path))
    refused, other = 0, 0
    tried = [*hostile(good, np.random.default_rng(0), 60)]
    for content in tried:
        path.write_bytes(content)
        message, found = refusal(read, path)
        refused += message is not None
        other += message is None and repr(found) != expected
    assert len(tried) > 60
    assert refused > len(tried) / 3
    print(f"{name}: {len(tried)} files, {refused} refused, {other} read as another")


def zeros(path):
    np.savez_compressed(path, **{**ARRAYS, "train_x": np.zeros(2**20, np.uint8)})


def rows(path):
    table = pyarrow.table({"a": pyarrow.array(np.ones(2**11, bool))})
    pyarrow.parquet.write_table(table, path)


def texts(path):
    """Write one text that is long, of which the file needs a copy only."""
    column = pyarrow.array(["x" * 2**15] * 2**8).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"a": column}), path)


def picture(path):
    cifar(path)
    buffer = BytesIO()
    Image.new("L", (4_000, 4_000)).save(buffer, "WEBP", lossless=True)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["train_webp"] = np.frombuffer(buffer.getvalue(), np.uint8)
    arrays["train_offsets"] = np.array([0, len(arrays["train_webp"])])
    np.savez(path, **arrays)


def config(**changes):
    """Return what writes a config that does not fit the weights beside it."""

    def write(path):
        mlp(path.parent)
        saved = json.loads(path.read_text())
        path.write_text(json.dumps({**saved, **changes}))

    return write


def many_layers(path):
    shutil.copytree(GOLDEN / "gpt2", path.parent, dirs_exist_ok=True)
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "n_layer": 10**6}))


def many_experts(path):
    shutil.copytree(GOLDEN / "mixtral", path.parent, dirs_exist_ok=True)
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "num_local_experts": 10**9}))


def t5_distances(path):
    shutil.copytree(GOLDEN / "t5", path.parent, dirs_exist_ok=True)
    far = {"relative_attention_max_distance": 10**9}
    path.write_text(json.dumps({**json.loads(path.read_text()), **far}))


def manifest(**changes):
    return written({**MANIFEST, **changes})


BOMBS = {
    "zeros in an archive": ("vision/mnist.npz", zeros, "but may have 65536"),
    "zeros in gzip": (
        "a.jsonl.gz",
        lambda path: path.write_bytes(gzip.compress(bytes(2**17))),
        "more than 65,536 bytes",
    ),
    "equal rows": ("a.parquet", rows, "but 1,000 values are read at once"),
    "equal texts": ("a.parquet", texts, "more than 65,536 bytes"),
    "a large picture": ("vision/cifar10.npz", picture, r"4000\), not 32 wide"),
    "layers": ("m/config.json", many_layers, "layers = 1000000, but .* most"),
    "experts": (
        "m/config.json",
        many_experts,
        r"blocks/mlp/down would have the shape \(4, 1000000000, 96, 64\)",
    ),
    "modules": (
        "m/config.json",
        config(model="vit", arguments={"size": [8, 10**6, 2]}),
        "can be of 4 layers at most",
    ),
    "numbers": (
        "m/config.json",
        config(arguments={"features": 10**9, "widths": [3], "classes": 2}),
        r"hidden/0/kernel would have the shape \(1000000000, 3\)",
    ),
    "distances": (
        "m/config.json",
        t5_distances,
        "max_distance must be at most 16777216, got 10000000",
    ),
    "answer files": (
        "teacher.json",
        manifest(examples=10**15),
        "more than 100,000 files",
    ),
    "answers": (
        "teacher.json",
        manifest(arrays={"a": ["<f4", [10**8]]}),
        "an answer of 400,000,008 bytes",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_fill_the_memory_is_refused_by_the_limit(name, folder, monkeypatch):
    monkeypatch.setattr(untrusted, "EXPANDED", 2**16)
    monkeypatch.setattr(untrusted, "EXPANSION", 2)
    monkeypatch.setattr(data.columns, "LARGEST_GROUP", 1000)
    monkeypatch.setattr(data.columns, "LARGEST_BYTES", 2**16)
    file, write, message = BOMBS[name]
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    write(path)
    begun = time.perf_counter()
    with pytest.raises(ValueError, match=message) as refused:
        FORMATS[file][1](path)
    assert str(path) in str(refused.value)
    assert time.perf_counter() - begun < 5


def test_the_limits_leave_room_for_what_is_in_use(folder):
    # The longest JSON of a published model is 9 MB, and text shrinks to a tenth.
    assert untrusted.LARGEST_JSON > 5 * 9e6
    assert untrusted.EXPANSION > 50
    assert untrusted.EXPANDED > 2e8
    assert data.columns.LARGEST_GROUP > 50 * 2**20  # Columns of Arrow's own groups.


LLAMA = json.loads((GOLDEN / "llama" / "config.json").read_text())


@pytest.mark.parametrize("key", sorted(LLAMA))
def test_a_key_that_is_missing_is_named_or_has_a_default(key, folder, monkeypatch):
    monkeypatch.setattr(folders, "read_variables", lambda *_: "variables")
    path = folder / "llama" / "config.json"
    shutil.copytree(GOLDEN / "llama", path.parent)
    path.write_text(json.dumps({k: v for k, v in LLAMA.items() if k != key}))
    message, _ = refusal(lambda path: load_pretrained(path.parent), path)
    needed = "architectures", "model_type", "hidden_size", "intermediate_size"
    needed += "num_attention_heads", "num_hidden_layers", "vocab_size"
    assert (message is not None) == (key in needed)
    assert message is None or f"'{key}'" in message


PANICS = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}


def test_a_panic_of_the_tokenizer_is_an_error(folder):
    path = folder / "tokenizer.json"
    tokenizer(path)
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "normalizer": PANICS}))
    message, _ = refusal(encode, path)
    assert "PanicException" in message


OUTSIDE = ("../x", "a/../../x", "/etc/x", "C:\\x", "..\\x", "", ".", 3, None, "\x1b[2J")


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_files_of_its_folder_only(name, folder):
    path = folder / "m" / "model.safetensors.index.json"
    path.parent.mkdir(exist_ok=True)
    index(path.parent)
    shutil.copy(path.parent / "model-00001-of-00002.safetensors", folder / "x")
    saved = json.loads(path.read_text())
    saved["weight_map"]["a"] = name
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"index.json (names|cannot be read)"):
        Shards(path.parent)


def test_names_in_a_folder_stay_in_it(tmp_path):
    for name in OUTSIDE:
        with pytest.raises(ValueError, match=r"a\.json names"):
            inside(tmp_path, name, tmp_path / "a.json")
    for name in ("x", "a/x", "..x", "x..y"):
        assert inside(tmp_path, name, tmp_path / "a.json") == tmp_path / name
    # A download is links into a cache, which whoever downloaded has made.
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x").symlink_to(tmp_path / "cache")
    assert inside(tmp_path / "m", "x", tmp_path).readlink() == tmp_path / "cache"


ESCAPES = ("\x1b]0;mine\x07", "\x9b2J", "a\rb", "\u202egpj")


@pytest.mark.parametrize("name", ["results.json", "records.json", "compiled.json"])
def test_names_that_a_terminal_would_obey_are_refused(name, folder):
    write, read = FORMATS[name]
    path = folder / name
    for escape in ESCAPES:
        write(path)
        text = path.read_text()
        assert text.count("mlp") + text.count("all-reduce") == 1
        quoted = json.dumps(escape)[1:-1]
        path.write_text(text.replace("mlp", quoted).replace("all-reduce", quoted))
        message, _ = refusal(read, path)
        assert "control characters" in message


def test_messages_have_no_escapes(folder, capsys):
    path = folder / "results.json"
    path.write_text(json.dumps({**RESULTS, "schema": "\x1b[2J"}))
    assert main(["report", "baselines", "--results", str(path)]) == 1
    assert "\x1b[2J" not in capsys.readouterr().err
    assert plain("a\x1b[2J\n\tü🙂") == "a\\x1b[2J\n\tü🙂"
    path.write_text(json.dumps(RESULTS))
    assert main(["report", "baselines", "--results", str(path)]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "holds results of a, whose claims are not those of baselines" in message
