"""Images in class folders: their order, classes, colours, and what cannot be read."""

import numpy as np
import pytest
from PIL import Image

from jaxkd import data

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    """Two classes, three formats, four ways to keep colours, one file aside."""
    images = {
        "cat/b.png": Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8)),
        "cat/deep/a.JPEG": Image.new("CMYK", (16, 16), (0, 255, 255, 0)),
        "dog/c.webp": Image.new("RGBA", (12, 40), (0, 0, 255, 128)),
        "dog/d.jpg": Image.new("L", (16, 16), 77),
    }
    for name, image in images.items():
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path / "train"


def test_images_of_class_folders_become_one_size(photos):
    source = data.image_folder(photos, 8)
    assert data.folder_classes(photos) == ("cat", "dog")
    assert len(source) == 4
    batch = source.take(np.arange(4))
    assert batch["image"].shape == (4, 8, 8, 3)
    assert batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["label"], [0, 0, 1, 1])
    # A JPEG of one ink is red, a grey one grey, in every pixel.
    colours = batch["image"].reshape(4, -1, 3).astype(int)
    assert abs(colours[1] - [255, 0, 0]).max() < 10
    assert abs(colours[3] - 77).max() < 3
    # The centre is the same every time, a random crop is not.
    np.testing.assert_array_equal(source.take(np.arange(4))["image"], batch["image"])
    crops = [source.take(np.arange(1), np.random.default_rng(i)) for i in range(2)]
    assert (crops[0]["image"] != crops[1]["image"]).any()


def test_classes_of_someone_else_number_the_folders(photos):
    source = data.image_folder(photos, 8, classes=["dog", "bird", "cat"])
    assert source.classes == 3
    np.testing.assert_array_equal(source.take(np.arange(4))["label"], [2, 2, 0, 0])
    with pytest.raises(ValueError, match="2 names, 2 of them different, and not 'dog'"):
        data.image_folder(photos, 8, classes=["cat", "bird"])
    with pytest.raises(ValueError, match=r"3 names, 2 of them different.* once"):
        data.image_folder(photos, 8, classes=["cat", "dog", "dog"])


def test_what_cannot_be_read_is_named(photos, tmp_path, monkeypatch):
    for folder, why in {
        photos / "cat" / "b.png": "is not a folder",
        photos / "cat" / "deep": "holds no folders",
        tmp_path / "none": "is not a folder",
    }.items():
        with pytest.raises(FileNotFoundError, match=why):
            data.image_folder(folder)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no image in 1 folders: .*\.webp"):
        data.image_folder(tmp_path / "empty")
    source = data.image_folder(photos, 8)
    path = photos / "cat" / "b.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"record 0 cannot .*b\.png cannot be read as"):
        source.take(np.arange(1))
    Image.new("RGB", (8, 8)).save(path, format="GIF")
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image"):
        source.take(np.arange(1))
    monkeypatch.setattr(data.images, "LARGEST", 255)
    with pytest.raises(ValueError, match="16 by 16 pixels, and may have 255 in all"):
        source.take(np.arange(1, 2))
