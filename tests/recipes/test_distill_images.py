"""``jaxkd distill images``: from a teacher, a student and a folder of images."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxkd import data, interop, models, recipes
from jaxkd.cli import main
from jaxkd.recipes import image_methods, images, runs
from jaxkd.recipes.image_data import Images, as_teacher_counts
from jaxkd.recipes.image_models import (
    Model,
    processor_of,
    read_model,
    with_classes,
)

HUGGING_FACE = Path(__file__).parents[1] / "golden" / "hf"
NAMES = ("cat", "dog", "owl")
OTHER = ("owl", "cat", "dog")


def draw(folder, names=NAMES, count=6):
    """Write JPEGs whose colour says their class."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            pixels = rng.integers(0, 90, (36, 32, 3), np.uint8)
            pixels[..., i % 3] += 160
            Image.fromarray(pixels).save(folder / name / f"{j}.jpg")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder whose classes are in another order than the data's."""
    folder = tmp_path_factory.mktemp("teacher")
    network = models.cnn(3, (4, 8), classes=3, depth=2)
    names = {"id2label": {str(i): name for i, name in enumerate(OTHER)}}
    variables = network.init(jax.random.key(0))
    shape = (32, 32, 3)
    interop.save_pretrained(folder, network, variables, input_shape=shape, config=names)
    return folder


def arguments(pictures, teacher, to, **others):
    """Return a small job's arguments; all of them have the same shapes."""
    given = {
        "teacher": teacher,
        "student": "cnn",
        "data": pictures,
        "to": to,
        "steps": 2,
        "batch_size": 4,
        "evaluate_every": 1,
        "validation_share": 0.25,
    }
    return {**given, **others}


def command(pictures, teacher, to, *words, **others):
    words = [*words]
    for name, value in arguments(pictures, teacher, to, **others).items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return main(["distill", "images", *words])


@pytest.fixture(scope="module")
def written(pictures, teacher, tmp_path_factory):
    to = tmp_path_factory.mktemp("run") / "student"
    method = "0.9*kd+0.1*cross_entropy+10*fitnets"
    assert command(pictures, teacher, to, "--control", method=method) == 0
    return to


@pytest.mark.slow
def test_the_folder_is_a_classifier_with_its_report(written, pictures):
    own = {"README.md", "SHA256SUMS", "curves.png", "metrics.jsonl", "report.html"}
    model = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in written.iterdir()} == own | model | {"recipe.yaml"}
    config = json.loads((written / "config.json").read_text())
    assert tuple(config["id2label"].values()) == OTHER
    card = (written / "README.md").read_text()
    for said in ("0.9 kd + 0.1 cross_entropy + 10 fitnets", "student after", "top-1 %"):
        assert said in card
    assert "cross-entropy alone" in card
    # What is written gives the numbers of the table, from files to logits.
    network, variables = interop.load_pretrained(written)
    processor = data.load_image_processor(written)
    source = data.open_images(pictures, classes=OTHER, crop=lambda x, rng: x)
    _, held_out = data.split(source, 4, 0)
    batch = held_out.take(np.arange(4))
    images = jnp.stack([processor.image(x) for x in batch["image"]])
    logits = network.apply(variables, images)[0].logits
    right = 100 * float(np.mean(np.argmax(logits, -1) == batch["label"]))
    (row,) = (line for line in card.split("\n") if line.startswith("| top-1 %"))
    assert float(row.split("|")[4].strip(" *")) == pytest.approx(right, abs=0.05)


@pytest.mark.slow
def test_a_run_goes_on_after_a_full_disk(
    written, pictures, teacher, tmp_path, monkeypatch
):
    to = tmp_path / "out"
    method = "0.9*kd+0.1*cross_entropy+10*fitnets"
    given = arguments(pictures, teacher, to, method=method, control=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_pages", full)
        with pytest.raises(OSError, match=r"out cannot be written .No space left"):
            recipes.distill_images(**given)
    assert not to.exists()
    found = recipes.distill_images(**given)
    assert [entry["step"] for entry in found.history] == [1, 2]
    _, theirs = interop.load_pretrained(written)
    jax.tree.map(np.testing.assert_array_equal, found.state.student, theirs)


@pytest.mark.slow
def test_a_teacher_by_name_is_trained_first(pictures, tmp_path):
    to = tmp_path / "out"
    options = {"student_options": {"depth": 2}, "augment": ("flip", "mixup")}
    found = recipes.distill_images(**arguments(pictures, "cnn", to, **options))
    kept = to.with_name("out.training") / "trained teacher"
    network, _ = interop.load_pretrained(kept)
    assert network.spec[0] == "cnn"
    assert json.loads((kept / "config.json").read_text())["id2label"]["2"] == "owl"
    assert {"top1", "agreement", "teacher_kl"} <= set(found.history[-1])
    # A student from a folder of other classes gets a new last layer.
    other = draw(tmp_path / "other", ("ant", "bee"), 4)
    given = arguments(other, None, tmp_path / "second", method="cross_entropy")
    second = recipes.distill_images(**{**given, "student": kept, "batch_size": 2})
    assert second.state.student["params"]["head"]["kernel"].shape[-1] == 2
    assert {record.method for record in second.records} == {
        "student before",
        "student after",
    }


def bad(folder, pictures, teacher, **others):
    """Return the message of a job that is refused before it begins."""
    given = arguments(pictures, teacher, folder / "out", **others)
    with pytest.raises((ValueError, OSError)) as refused:
        recipes.distill_images(**given)
    assert not (folder / "out").exists()
    return str(refused.value)


def test_data_that_make_no_job_are_refused(pictures, teacher, tmp_path):
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    assert "holds no image" in bad(tmp_path, tmp_path / "empty", teacher)
    one = draw(tmp_path / "one", ("cat",))
    assert "one class alone (cat): name the folder" in bad(tmp_path, one, teacher)
    unknown = draw(tmp_path / "unknown", ("cat", "dog", "emu"))
    message = bad(tmp_path, unknown, teacher)
    assert "does not know the classes emu: its id2label has owl, cat, dog" in message
    assert "--match numbers" in message
    four = draw(tmp_path / "four", (*NAMES, "emu"))
    message = bad(tmp_path, four, teacher, match="numbers")
    assert f"the data have 4 classes, but {teacher} has 3" in message
    assert "batch_size is 99, but" in bad(tmp_path, pictures, teacher, batch_size=99)
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    path = broken / "owl" / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    message = bad(tmp_path, broken, teacher, validation_share=0.9, batch_size=1)
    assert f"{path} cannot be read as an image" in message
    missing = bad(tmp_path, tmp_path / "nowhere", teacher)
    assert "nowhere is no file, and stands for none" in missing


def test_names_that_are_none_are_refused(pictures, teacher, tmp_path):
    def message(**others):
        return bad(tmp_path, pictures, teacher, **others)

    for method, why in {
        "kdd": "unknown method 'kdd': did you mean 'kd'?",
        "kd+kd": "names kd twice",
        "x*kd": "has the weight 'x': write it as in 0.9*kd",
        "crd": "unknown method 'crd'",  # It needs the data's labels.
    }.items():
        assert why in message(method=method)
    assert "unknown model 'resnet19'" in message(student="resnet19")
    assert "unknown option of kd 'temp'" in message(options={"temp": 2.0})
    assert "unknown student tap 'x'" in message(method="sp", options={"tap": "x"})
    assert "config.json is missing" in message(student=tmp_path / "none")
    assert "learns from a teacher" in bad(tmp_path, pictures, None)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists: name a new folder"):
        recipes.distill_images(**arguments(pictures, teacher, tmp_path / "there"))


def test_sizes_and_widths_that_do_not_fit_are_refused(pictures, teacher, tmp_path):
    def message(**others):
        return bad(tmp_path, pictures, teacher, **others)

    said = message(student="vgg8", size=4)
    assert "vgg8 cannot take images of 4 x 4 pixels" in said
    assert "give another --size" in said
    said = message(method="fsp", options={"taps": "stage0,stage1"})
    assert "the method cannot compare student's stage0 (32, 32, 16), " in said
    assert "teacher's" in said
    assert "learns a projector, such as fitnets" in said
    said = message(student="cnn", size=48, augment=("mixup",))
    assert "mixup adds images up as the student sees them" in said


def test_a_sum_of_methods_has_weights_and_taps():
    terms = image_methods.resolve("kd+fitnets", {"temperature": 2.0})
    assert [(t.weight, t.name) for t in terms] == [
        (1.0, "kd"),
        (100.0, "fitnets"),
        (1.0, "cross_entropy"),
    ]
    assert terms[0].options == {"temperature": 2.0}
    terms = image_methods.resolve(
        "0.9*kd + 1e-1*cross_entropy", {"kd.temperature": 1.0}
    )
    assert [t.weight for t in terms] == [0.9, 0.1]
    small = Model("a", models.cifar_resnet(8), None, processor_of(32, None))
    large = Model("b", models.imagenet_resnet(18), None, processor_of(224, None))
    for method, mine, theirs in (
        ("fitnets", ("stage2",), ("stage3",)),
        ("sp", ("stage3",), ("stage4",)),
        ("at", ("stage1", "stage2", "stage3"), ("stage2", "stage3", "stage4")),
        ("rkd", ("pooled",), ("pooled",)),
        ("kd+taid", (), ()),
    ):
        made = image_methods.objective(
            image_methods.resolve(method, {}), small, large, 10
        )
        assert (made.student_taps, made.teacher_taps) == (mine, theirs)


def test_images_get_the_teachers_numbers(pictures, teacher):
    source = data.open_images(pictures, 8)
    found = Images(source, source, source.names)
    network, variables = interop.load_pretrained(teacher)
    model = Model("t", network, variables, processor_of(32, None), OTHER)
    counted = as_teacher_counts(found, model, "names")
    assert counted.names == counted.train.names == OTHER
    labels = data.example_labels(counted.train)
    expected = np.array([OTHER.index(name) for name in NAMES])
    np.testing.assert_array_equal(labels, expected[data.example_labels(source)])
    same = as_teacher_counts(found, model, "numbers")
    assert same.names == NAMES
    twice = Model("t", network, variables, model.processor, ("owl", "owl", "dog"))
    with pytest.raises(ValueError, match="two classes of one name"):
        as_teacher_counts(found, twice, "names")
    numbered = Images(source, source, ())
    with pytest.raises(ValueError, match=r"names its own .*by --match numbers"):
        as_teacher_counts(numbered, model, "names")
    assert as_teacher_counts(numbered, model, "numbers").names == OTHER


def test_a_hugging_face_student_of_other_classes_stays_one(tmp_path):
    folder = HUGGING_FACE / "resnet"
    found = read_model(folder, mesh=None, dtype="float32", size=32)
    assert (found.size, found.width, found.classes) == (32, 10, ())
    model = with_classes(found, 3, seed=0)
    assert model.width == 3
    images._save(tmp_path, model, model.variables, OTHER)
    again = read_model(tmp_path, mesh=None, dtype="float32", size=None)
    assert again.classes == OTHER
    assert again.processor == found.processor
    said, before = (
        json.loads((x / "config.json").read_text()) for x in (tmp_path, folder)
    )
    assert said["architectures"] == ["ResNetForImageClassification"]
    changed = {key for key in said if said[key] != before.get(key)}
    assert changed == {"id2label", "label2id", "input_shape"}
    kernels = zip(
        *map(jax.tree.leaves, (again.variables, found.variables)), strict=True
    )
    assert sum(a.shape != b.shape for a, b in kernels) == 2
