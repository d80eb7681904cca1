"""Image processors of Hugging Face folders, against transformers' own on Pillow."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.image_processor import processor_config

GOLDEN = Path(__file__).parents[1] / "golden" / "image_processors.npz"
CONFIGS = json.loads(GOLDEN.with_suffix(".json").read_text())


def folder(path, config, name="preprocessor_config.json"):
    (path / name).write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_pixels_are_those_of_transformers(name, tmp_path):
    processor = data.load_image_processor(folder(tmp_path, CONFIGS[name]))
    golden = np.load(GOLDEN)
    for picture in ("wide", "tall", "small"):
        found, expected = processor.image(golden[picture]), golden[f"{name}.{picture}"]
        assert found.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    assert processor.size == expected.shape[:2]
    batch = {"image": golden["wide"][None].repeat(2, 0), "label": np.arange(2)}
    found = processor(batch, None)
    np.testing.assert_array_equal(found["image"][1], golden[f"{name}.wide"])
    assert found["label"] is batch["label"]


def test_a_processor_of_texts_too_holds_that_of_its_images(tmp_path):
    expected = data.load_image_processor(folder(tmp_path, CONFIGS["siglip"]))
    (tmp_path / "preprocessor_config.json").unlink()
    config = {
        "image_processor": CONFIGS["siglip"],
        "processor_class": "SiglipProcessor",
    }
    folder(tmp_path, config, "processor_config.json")
    assert data.load_image_processor(tmp_path) == expected


def test_a_large_convnext_takes_pictures_whole(tmp_path):
    config = {**CONFIGS["resnet"], "size": {"shortest_edge": 384}}
    processor = data.load_image_processor(folder(tmp_path, config))
    assert (processor.resize, processor.crop) == ((384, 384), None)


def test_crops_become_the_models_size_whole(tmp_path):
    processor = data.load_image_processor(folder(tmp_path, CONFIGS["dinov2"]))
    crops = {"image": np.full((2, 20, 20, 3), 255, np.uint8)}
    crops["image"][:, 0] = 0  # Black at the rim, which the centre leaves out.
    whole = data.ForTeacher(processor.of_crops())(crops, None)["teacher_image"]
    assert whole.shape == (2, 15, 15, 3)
    assert whole[:, 0].max() < whole[:, 1:].min()
    assert np.ptp(processor(crops, None)["image"][..., 0]) == 0
    config = {**CONFIGS["dinov2"], "do_center_crop": False}
    with pytest.raises(ValueError, match="leaves pictures their sizes"):
        data.load_image_processor(folder(tmp_path, config)).of_crops()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_processor_type": "SamImageProcessor"}, "'Sam'.* Valid: Bit, CLIP"),
        ({"image_processor_type": None}, "unknown image processor ''"),
        ({"size": {"longest_edge": 9}}, r"its size is .*, but jaxkd knows height and"),
        ({"size": {"height": -1, "width": 9}}, "resize must be at least 1, got -1"),
        ({"size": 10**6}, r"resize is \(1000000, 1000000\), but sides have 8192"),
        ({"size": "224"}, "preprocessor_config.json cannot be read"),
        ({"resample": 9}, "resample is 0 … 5"),
        ({"image_std": [0, 1, 1]}, "std must be above 0"),
        ({"image_mean": [0.5]}, r"mean is \(0.5,\) and std"),
    ],
)
def test_what_is_not_known_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.load_image_processor(folder(tmp_path, CONFIGS["vit"] | changes))


def test_what_is_missing_or_no_picture_is_refused(tmp_path, unchecked_shapes):
    with pytest.raises(FileNotFoundError, match="fetch it, or give the images a trans"):
        data.load_image_processor(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        data.load_image_processor(folder(tmp_path, [1]))
    processor = data.load_image_processor(folder(tmp_path, CONFIGS["dinov2"]))
    with pytest.raises(ValueError, match="float32 of shape"):
        processor.image(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="may have 67,108,864 in all: leave it out"):
        processor.image(np.zeros((1, 3_000_000, 3), np.uint8))


@pytest.mark.parametrize(
    ("resize", "crop"), [((8, 6), None), (9, (8, 8)), (None, None), ((9, 9), (8, 8))]
)
def test_a_processor_is_written_as_it_is_read(resize, crop, tmp_path):
    mean = (0.5, 0.25, 0.125) if crop else None
    made = data.ImageProcessor(resize, crop, 3, 1 / 255, mean, mean)
    if resize is None:
        made = dataclasses.replace(made, resample=0)
    said = json.dumps(processor_config(made))
    (tmp_path / "preprocessor_config.json").write_text(said)
    assert data.load_image_processor(tmp_path) == made
