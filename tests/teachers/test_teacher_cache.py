"""A teacher's cache: what is read is what it said, or an error says why not."""

import contextlib
import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import TRIALS, damaged

from jaxkd import Network, data, distill, methods, models, teachers, training
from jaxkd.digests import check_json, sealed
from jaxkd.losses import top_k_log_probs
from jaxkd.teachers.cache import MANIFEST

VOCABULARY, LENGTH, K = 11, 6, 3


def windows(seed=0, **changes):
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, 141).astype(np.uint8)
    return data.Windows(
        "text", tokens, **{"length": LENGTH, "classes": VOCABULARY, **changes}
    )


def bigrams(seed):
    """Return a network whose logits are looked up by the token."""
    table = np.random.default_rng(seed).normal(0, 2, (VOCABULARY, VOCABULARY))
    return Network.from_apply(
        lambda key: {"table": jnp.asarray(table, jnp.float32)},
        lambda params, ids: params["table"][ids],
        reads=("input_ids",),
    )


TEACHER, STUDENT = bigrams(1), bigrams(2)


@pytest.fixture(scope="module")
def variables():
    return TEACHER.init(jax.random.key(0))


@pytest.fixture(scope="module")
def targets(variables):
    return teachers.network_targets(TEACHER, variables, k=K, dtype="float32")


def write(folder, targets, source=None, **options):
    options = {"batch_size": 4, "shard_examples": 8, **options}
    return teachers.write_teacher_cache(folder, source or windows(), targets, **options)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, targets):
    folder = tmp_path_factory.mktemp("cache")
    write(folder, targets)
    return folder


@pytest.fixture
def copy(cache, tmp_path):
    """A cache to be spoiled."""
    for file in cache.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_reads_what_the_teacher_says(cache, variables):
    source = teachers.CachedTeacher(windows(), cache)
    assert len(source) == len(windows()) == 23
    positions = np.array([22, 3, 9, 3, 0])
    batch = source.take(positions)
    logits = TEACHER.apply(variables, batch["input_ids"])[0].logits
    ids, log_probs = top_k_log_probs(logits, K)
    assert (batch["teacher_ids"] == ids).all()
    assert batch["teacher_ids"].dtype == np.uint8
    np.testing.assert_allclose(batch["teacher_log_probs"], log_probs, atol=1e-5)
    for name, array in windows().take(positions).items():
        assert (batch[name] == array).all()


def train(teacher, source, method):
    program = distill(STUDENT, teacher, method, optax.adam(0.01))
    batches = data.batches(source, 4, epochs=1, seed=3)
    state, history = training.fit(program, batches, key=jax.random.key(0))
    metrics = {k: v for k, v in history[-1].items() if k.startswith("train_")}
    return state.student["params"], metrics


@pytest.mark.slow
def test_training_from_it_is_training_with_the_teacher(cache):
    method = methods.combine((0.5, methods.cross_entropy()), (0.5, methods.topk_kd(K)))
    live = train(TEACHER, windows(), method)
    stored = train(None, teachers.CachedTeacher(windows(), cache), method)
    assert live[1].keys() == stored[1].keys()
    chex.assert_trees_all_close(live, stored, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "kind", "off"),
    [("float16", np.float16, 2**-11), (None, np.float32, 2**-12)],
    ids=["half precision", "coded"],
)
def test_is_off_by_its_rounding(tmp_path, variables, cache, dtype, kind, off):
    write(tmp_path, teachers.network_targets(TEACHER, variables, k=K, dtype=dtype))
    rounded, exact = (
        teachers.CachedTeacher(windows(), folder).take(np.arange(23))
        for folder in (tmp_path, cache)
    )
    assert (rounded["teacher_ids"] == exact["teacher_ids"]).all()
    found, right = (batch["teacher_log_probs"] for batch in (rounded, exact))
    assert found.dtype == kind
    np.testing.assert_allclose(found, right, rtol=off, atol=2**-24)
    assert (found != right).any()


def test_a_coded_cache_of_something_else_is_refused(tmp_path, variables):
    write(tmp_path, teachers.network_targets(TEACHER, variables, k=K))
    about = tmp_path / "teacher.json"
    manifest = check_json(json.loads(about.read_text()))
    ids, log_probs = manifest["arrays"].values()
    for arrays in (
        {"teacher_ids": ids},
        {"teacher_logits": log_probs},
        {"teacher_ids": ["<i2", ids[1]], "teacher_log_probs": log_probs},
        {"teacher_ids": ids, "teacher_log_probs": ["<f2", log_probs[1]]},
        {"teacher_ids": ids, "teacher_log_probs": ["<f4", log_probs[1][:1]]},
    ):
        about.write_text(json.dumps(sealed({**manifest, "arrays": arrays})))
        with pytest.raises(
            ValueError, match=r"teacher.json is damaged .*coded cache holds"
        ):
            teachers.CachedTeacher(windows(), tmp_path)


def test_full_logits_are_those_of_cached(tmp_path, variables):
    write(
        tmp_path, teachers.network_targets(TEACHER, variables, k=None, dtype="float32")
    )
    stored = teachers.CachedTeacher(windows(), tmp_path)
    live = train(TEACHER, windows(), methods.kd(2.0))
    read = train(None, stored, methods.cached(methods.kd(2.0)))
    chex.assert_trees_all_close(live, read, rtol=1e-5, atol=1e-6)


class Killed(Exception):
    pass


def test_goes_on_after_a_kill_and_ends_the_same(tmp_path, targets, cache):
    answered = []

    def answer(batch):
        if len(answered) == 3:
            raise Killed
        answered.append(batch["index"])
        return targets.answer(batch)

    stopped = dataclasses.replace(targets, answer=answer)
    with pytest.raises(Killed):
        write(tmp_path, stopped)
    first = next(tmp_path.glob("teacher-00000*"))
    assert first.suffix == ".array_record"
    with pytest.raises(FileNotFoundError, match=r"teacher-00001.*not finished"):
        teachers.CachedTeacher(windows(), tmp_path)
    finished = first.stat().st_mtime_ns
    again, seen = [], []
    counting = dataclasses.replace(
        targets, answer=lambda b: again.append(b["index"]) or targets.answer(b)
    )
    size = write(tmp_path, counting, progress=seen.append)
    assert first.stat().st_mtime_ns == finished
    assert min(np.concatenate(again)) == 8
    assert seen == [8, 12, 16, 16, 20, 23, 23]
    assert contents(tmp_path) == contents(cache)
    records = [f for f in cache.iterdir() if f.suffix == ".array_record"]
    assert size == sum(f.stat().st_size for f in records)
    # All is there: nothing is asked again.
    again.clear()
    write(tmp_path, counting)
    assert not again


def test_fingerprint_tells_teachers_apart(variables, targets):
    assert teachers.variables_fingerprint(variables) == targets.fingerprint
    other = {**variables, "params": jax.tree.map(lambda x: -x, variables["params"])}
    assert teachers.variables_fingerprint(other) != targets.fingerprint
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    assert teachers.variables_fingerprint(half) != targets.fingerprint


def test_pipelines_know_the_cache_they_read(cache, targets, tmp_path):
    source = teachers.CachedTeacher(windows(), cache, targets.fingerprint)
    assert source.fingerprint != windows().fingerprint
    write(tmp_path, dataclasses.replace(targets, fingerprint="another"))
    assert teachers.CachedTeacher(windows(), tmp_path).fingerprint != source.fingerprint


def test_another_teacher_or_other_data_are_refused(cache):
    with pytest.raises(ValueError, match="made by another teacher"):
        teachers.CachedTeacher(windows(), cache, "0123456789abcdef")
    for other in (windows(1), windows(length=5), windows(stride=3)):
        with pytest.raises(ValueError, match="a cache of other data"):
            teachers.CachedTeacher(other, cache)


@dataclasses.dataclass(frozen=True)
class Changing:
    """Other examples than `windows`, with their fingerprint."""

    name, classes, fingerprint = "changing", VOCABULARY, windows().fingerprint

    def __len__(self):
        return len(windows())

    def take(self, positions, rng=None):
        batch = windows().take(positions)
        # Labels are a view of the same tokens, and stay.
        batch["input_ids"] = (
            batch["input_ids"] + (np.arange(len(positions)) > 0)[:, None]
        )
        return batch


def test_answers_for_another_example_are_refused(cache):
    source = teachers.CachedTeacher(Changing(), cache)
    with pytest.raises(ValueError, match="answer 5 was made for another example"):
        source.take(np.array([4, 5]))


def test_damaged_files_are_named(copy):
    file = next(copy.glob("teacher-00001*"))
    whole = file.read_bytes()
    found = whole.find(b"\x28\xb5\x2f\xfd")  # the first compressed chunk of the records
    assert found > 0
    spoiled = bytearray(whole)
    spoiled[found + 30] ^= 255
    file.write_bytes(spoiled)
    with pytest.raises(ValueError, match=r"teacher-00001.*damaged"):
        teachers.CachedTeacher(windows(), copy).take(np.arange(23))
    file.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match=r"teacher-00001.*cut off or damaged"):
        teachers.CachedTeacher(windows(), copy)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"teacher-00001.*not finished"):
        teachers.CachedTeacher(windows(), copy)


def test_a_record_that_reads_well_but_is_wrong_is_named(copy):
    # The file's own checksums are right, ours are not.
    from array_record.python.array_record_module import (
        ArrayRecordReader,
        ArrayRecordWriter,
    )

    file = next(copy.glob("teacher-00000*"))
    reader = ArrayRecordReader(str(file))
    records = reader.read_all()
    reader.close()
    records[2] = records[2][:-1] + bytes([records[2][-1] ^ 1])
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    source = teachers.CachedTeacher(windows(), copy)
    source.take(np.array([0, 1]))
    with pytest.raises(
        ValueError, match=r"teacher-00000.*record 2 has another checksum"
    ):
        source.take(np.array([1, 2]))


def test_no_damaged_cache_is_read(copy):
    right = teachers.CachedTeacher(windows(), copy).take(np.arange(23))
    read = []
    for what in damaged(copy):
        with contextlib.suppress(ValueError):
            found = teachers.CachedTeacher(windows(), copy).take(np.arange(23))
            chex.assert_trees_all_equal(found, right)
            read.append(what)
    # Those were in spaces of the manifest.
    assert len(read) < TRIALS / 8, read


def test_a_file_of_another_teacher_other_data_or_other_examples_is_refused(
    copy, targets, tmp_path_factory, variables
):
    def other(name, *arguments):
        folder = tmp_path_factory.mktemp(name)
        write(folder, *arguments)
        return folder

    negative = {**variables, "params": jax.tree.map(lambda x: -x, variables["params"])}
    negative = teachers.network_targets(TEACHER, negative, k=K, dtype="float32")
    file = "teacher-00001-of-00003.array_record"
    for path, name in [
        (other("teacher", negative) / file, "teacher"),
        (other("data", targets, windows(1)) / file, "data"),
        (copy / file.replace("1-of", "0-of"), "first"),
    ]:
        before = (copy / file).read_bytes()
        (copy / file).write_bytes(path.read_bytes())
        message = (
            rf"teacher-00001.* is not of this cache: its {name} is '?\w+'? in plac"
        )
        for call in (
            lambda: teachers.CachedTeacher(windows(), copy),
            lambda: write(copy, targets),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        (copy / file).write_bytes(before)


def test_a_manifest_with_its_arrays_in_another_order_is_refused(copy):
    path = copy / MANIFEST
    found = json.loads(path.read_text())
    found["arrays"] = dict(reversed(found["arrays"].items()))
    path.write_text(json.dumps(found))  # The digest is of its content in any order.
    with pytest.raises(ValueError, match="is not of this cache: its arrays is"):
        teachers.CachedTeacher(windows(), copy)


def test_a_cache_without_labels_is_read_and_goes_on(copy, cache, targets):
    """As those were written that were begun before there were labels."""
    from array_record.python.array_record_module import (
        ArrayRecordReader,
        ArrayRecordWriter,
    )

    for file in copy.glob("*.array_record"):
        reader = ArrayRecordReader(str(file))
        records = reader.read_all()[:-1]
        reader.close()
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["labels"], manifest["sha256"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    read, again = (
        teachers.CachedTeacher(windows(), folder).take(np.arange(23))
        for folder in (copy, cache)
    )
    chex.assert_trees_all_equal(read, again)
    next(copy.glob("teacher-00002*")).unlink()
    write(copy, targets)
    read = teachers.CachedTeacher(windows(), copy).take(np.arange(23))
    chex.assert_trees_all_equal(read, again)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"examples": 3}'])
def test_damaged_manifests_are_named(copy, text):
    (copy / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"teacher.json is damaged"):
        teachers.CachedTeacher(windows(), copy)


def test_no_cache_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no teacher's cache"):
        teachers.CachedTeacher(windows(), tmp_path)


def test_a_folder_of_another_cache_is_left_alone(copy, targets, variables):
    before = contents(copy)
    half = teachers.network_targets(TEACHER, variables, k=K)
    for call, message in [
        (lambda: write(copy, half), "'dtype': 'float32'.*'dtype': 'coded'"),
        (lambda: write(copy, targets, windows(1)), "another cache, of {'data'"),
        (lambda: write(copy, targets, batch_size=8), "'batch_size': 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert contents(copy) == before
    manifest = json.loads((copy / MANIFEST).read_text())
    assert manifest["k"] == K


def test_padding_of_the_vocabulary_is_cut_off_before_the_softmax(variables):
    batch = windows().take(np.arange(3))
    targets = teachers.network_targets(TEACHER, variables, k=K, vocabulary=7)
    assert targets.settings["vocabulary"] == 7
    found = targets.answer(batch)
    logits = TEACHER.apply(variables, batch["input_ids"])[0].logits
    ids, log_probs = top_k_log_probs(logits[..., :7], K)
    assert (found["teacher_ids"] == ids).all()
    np.testing.assert_allclose(found["teacher_log_probs"], log_probs, rtol=1e-3)
    wide = teachers.network_targets(TEACHER, variables, k=K, vocabulary=12)
    with pytest.raises(ValueError, match="vocabulary is 12, but the teacher has 11"):
        wide.answer(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of coded, float16"),
        ({"k": 0}, "k must be at"),
    ],
)
def test_bad_targets_are_named(variables, options, message):
    with pytest.raises(ValueError, match=message):
        teachers.network_targets(TEACHER, variables, **{"k": K, **options})


def test_bad_sizes_are_named(tmp_path, targets):
    with pytest.raises(ValueError, match=r"multiple of batch_size.*got 8 and 3"):
        write(tmp_path, targets, batch_size=3)
    assert not list(tmp_path.iterdir())


def test_answers_that_are_not_finite_are_refused(tmp_path, targets):
    def answer(batch):
        found = dict(targets.answer(batch))
        if 9 in batch["index"]:
            found["teacher_log_probs"] = np.full_like(
                found["teacher_log_probs"], np.nan
            )
        return found

    with pytest.raises(FloatingPointError, match="log_probs for examples 8 to 11"):
        write(tmp_path, dataclasses.replace(targets, answer=answer))
    assert len(list(tmp_path.glob("*.array_record"))) == 1


def test_a_teacher_on_a_mesh_says_the_same(tmp_path, variables, cache):
    mesh = training.make_mesh("fsdp")
    placed = jax.device_put(
        variables, training.state_sharding(variables, mesh, min_size=0)
    )
    targets = teachers.network_targets(TEACHER, placed, k=K, dtype="float32", mesh=mesh)
    write(tmp_path, targets)
    assert contents(tmp_path) == contents(cache)


def test_a_token_that_the_student_has_not_is_named(tmp_path):
    """A larger teacher's cache: the student has 11 logits, the teacher 14."""
    table = np.zeros((VOCABULARY, VOCABULARY + 3), np.float32)
    table[:, :K] = 1
    # Only one token's best is beyond the student's.
    rare = windows().tokens[-3]
    table[rare, VOCABULARY + 1] = 2
    larger = Network.from_apply(
        lambda key: {"table": jnp.asarray(table)},
        lambda params, ids: params["table"][ids],
        reads=("input_ids",),
    )
    start = larger.init(jax.random.key(0))
    write(tmp_path, teachers.network_targets(larger, start, k=K))
    source = teachers.CachedTeacher(windows(), tmp_path)
    for method in (methods.topk_kd(), methods.first()):
        with pytest.raises(ValueError, match=r"token 12 at .* 0 to 10.*vocabulary="):
            train(None, source, method)
    shared = tmp_path / "shared"
    write(shared, teachers.network_targets(larger, start, k=K, vocabulary=VOCABULARY))
    train(None, teachers.CachedTeacher(windows(), shared), methods.topk_kd())


def test_texts_of_another_tokenizer_are_refused():
    teacher = models.llama(VOCABULARY - 2, 8, 1, 2, 16)
    variables = jax.eval_shape(teacher.init, jax.random.key(0))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    targets = teachers.network_targets(teacher, variables, k=K)
    with pytest.raises(ValueError, match=r"batch\['input_ids'\] holds 1?[0-9] in"):
        targets.answer(windows().take(np.arange(8)))
