"""Files that tensorflow-datasets wrote are read, and all of it without TensorFlow."""

import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from jaxkd import data

SIZES = {"train": 12, "validation": 4, "test": 5}


def picture(split, i):
    """An image of the split's own size and content; heights differ."""
    rng = np.random.default_rng([SIZES[split], i])
    return rng.integers(0, 256, (40 + i % 3, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tfds():
    import tensorflow_datasets

    return tensorflow_datasets


@pytest.fixture(scope="module")
def prepared(tfds, tmp_path_factory):
    """A folder of two prepared data sets: of one size, and of several."""
    folder = tmp_path_factory.mktemp("tfds")

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            features = {"image": image, **self.extra}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in SIZES}

        def _generate_examples(self, split):
            for i in range(SIZES[split]):
                # The library encodes arrays by TensorFlow, but pictures by Pillow.
                image = picture(split, i)[: self.height]
                example = {"image": Image.fromarray(image), "label": i % 3}
                yield i, {key: example[key] for key in ("image", *self.extra)}

    label = {"label": tfds.features.ClassLabel(num_classes=3)}
    for name, height, extra in (
        ("equal_pictures", 40, label),
        ("mixed_pictures", None, label),
        ("bare_pictures", None, {}),
    ):
        attributes = {"name": name, "height": height, "extra": extra}
        builder = type(name, (Pictures,), attributes, skip_registration=True)
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_a_prepared_data_set_is_read(prepared):
    found = data.tfds_dataset(
        "equal_pictures", data_dir=prepared, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    assert (found.mean, found.std) == ((0.5,) * 3, (0.2,) * 3)
    assert found.train.name == "tfds/equal_pictures/train"
    assert found.test.name == "tfds/equal_pictures/test"
    assert (len(found.train), len(found.test)) == (12, 5)
    for source, split in ((found.train, "train"), (found.test, "test")):
        assert isinstance(source, data.Examples)
        assert source.classes == 3
        batch = source.take(np.arange(SIZES[split]))
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        # The library shuffles the records when it writes them.
        written = {picture(split, i)[:40].tobytes(): i for i in range(SIZES[split])}
        keys = [written.pop(image.tobytes()) for image in batch["image"]]
        assert not written
        np.testing.assert_array_equal(batch["label"], np.array(keys) % 3)
    assert "tensorflow" not in sys.modules


def test_its_batches_are_reproducible_with_many_readers(prepared):
    def start():
        source = data.tfds_dataset("equal_pictures", data_dir=prepared).train
        transform = data.Compose((data.PadCrop(4), data.Flip()))
        return iter(data.batches(source, 4, epochs=4, transform=transform))

    first, state, whole = start(), None, []
    for n, batch in enumerate(first):
        whole.append(batch)
        state = first.get_state() if n == 4 else state
    resumed = start()
    resumed.set_state(state)
    for expected, batch in zip(whole[5:], resumed, strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(batch[name], array)


def test_another_split_to_evaluate_on(prepared):
    found = data.tfds_dataset("equal_pictures", test="validation", data_dir=prepared)
    assert (found.test.name, len(found.test)) == ("tfds/equal_pictures/validation", 4)


def test_pictures_of_several_sizes_need_a_crop(prepared):
    source = data.tfds_dataset("mixed_pictures", data_dir=prepared).train
    with pytest.raises(ValueError, match=r"'tfds/mixed_pictures/train': .*CropResize"):
        source.take(np.arange(12))


def test_imagenet_is_cropped_and_evaluated_on_its_validation_split(
    tfds, prepared, monkeypatch
):
    asked = []
    library = tfds.builder

    def builder(name, data_dir):
        asked.append(name)
        return library("mixed_pictures", data_dir=prepared)

    monkeypatch.setattr(tfds, "builder", builder)
    found = data.load("tfds/imagenet2012")
    assert asked == ["imagenet2012"]
    assert (len(found.train), len(found.test)) == (12, 4)
    assert found.test.name == "tfds/imagenet2012/validation"
    assert found.mean == (0.485, 0.456, 0.406)
    rows = np.arange(4)
    centre, again = (found.test.take(rows)["image"] for _ in range(2))
    assert (centre.shape, centre.dtype) == ((4, 224, 224, 3), np.uint8)
    np.testing.assert_array_equal(centre, again)
    batch = next(iter(data.batches(found.train, 4, epochs=1)))
    plain = found.train.take(batch["index"])["image"]
    assert batch["image"].shape == plain.shape
    assert not np.array_equal(batch["image"], plain)


def test_a_damaged_record_file_is_answered_with_the_record(prepared, tmp_path):
    shutil.copytree(prepared / "equal_pictures", tmp_path / "equal_pictures")
    (file,) = tmp_path.glob("*/*/*-train.array_record*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    source = data.tfds_dataset("equal_pictures", data_dir=tmp_path).train
    message = (
        r"'tfds/equal_pictures/train': record \d+ cannot be read .*prepare the data"
    )
    with pytest.raises(ValueError, match=message):
        source.take(np.arange(12))


@pytest.mark.parametrize("name", ["cifar100", "no_such_set"])
def test_what_is_not_prepared_is_answered_with_how_to(tmp_path, name):
    message = rf"has no '{name}' in .* prepare it by `tfds build {name} --file_format"
    with pytest.raises(FileNotFoundError, match=message):
        data.tfds_dataset(name, data_dir=tmp_path)


def test_a_split_that_is_not_there(prepared):
    with pytest.raises(FileNotFoundError, match=r"'equal_pictures' in .*evaluation"):
        data.tfds_dataset("equal_pictures", test="evaluation", data_dir=prepared)


def test_a_data_set_without_labels_is_refused(prepared):
    message = r"has the features \['image'\], but .* image and label: choose another"
    with pytest.raises(ValueError, match=message):
        data.tfds_dataset("bare_pictures", data_dir=prepared)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ImportError, match=r"needs tensorflow-datasets: pip install 'ja"
    ):
        data.load("tfds/cifar10")


def test_prepared_texts_are_read(tfds, tmp_path):
    class Sentences(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "sentences"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((i, {"text": f"text {i} é"}) for i in range(4))

    builder = Sentences(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    records = data.tfds_records("sentences", "train", data_dir=tmp_path)
    assert sorted(data.texts(records)) == [f"text {i} é" for i in range(4)]
    with pytest.raises(FileNotFoundError, match=r"no 'sentences' in .*test"):
        data.tfds_records("sentences", "test", data_dir=tmp_path)
    assert "tensorflow" not in sys.modules
