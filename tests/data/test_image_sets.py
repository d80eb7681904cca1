"""The same images in every kind of file that people have, and damaged ones refused."""

import io
import json
import tarfile
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from jaxkd import data

RNG = np.random.default_rng(0)
NAMES = ("cat", "dog", "owl")
PIXELS = RNG.integers(0, 256, (6, 10, 8, 3), np.uint8)
LABELS = [0, 2, 1, 1, 0, 2]
FEATURES = {
    "picture": {"_type": "Image"},
    "kind": {"_type": "ClassLabel", "names": list(NAMES)},
}
CARD = """---
dataset_info:
  features:
  - name: picture
    dtype: image
  - name: kind
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
          '2': owl
---
# Animals
"""


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def table(metadata=True):
    rows = [
        {"picture": {"bytes": encoded(PIXELS[i]), "path": None}, "kind": LABELS[i]}
        for i in range(6)
    ]
    found = pyarrow.Table.from_pylist(rows)
    info = json.dumps({"info": {"features": FEATURES}})
    return found.replace_schema_metadata({"huggingface": info} if metadata else None)


def parquet(path):
    (path / "data").mkdir(parents=True)
    for i in range(2):
        part = table().slice(3 * i, 3)
        file = path / "data" / f"train-0000{i}-of-00002.parquet"
        pyarrow.parquet.write_table(part, file, row_group_size=2)
    pyarrow.parquet.write_table(table(), path / "data" / "test-00000-of-00001.parquet")
    return path


def parquet_with_a_card(path):
    path.mkdir()
    (path / "README.md").write_text(CARD)
    pyarrow.parquet.write_table(table(metadata=False), path / "train.parquet")
    return path


def stream(path, rows, **options):
    with pyarrow.ipc.new_stream(
        str(path), rows.schema, options=pyarrow.ipc.IpcWriteOptions(**options)
    ) as file:
        file.write_table(rows, max_chunksize=4)


def saved(path):
    """What ``Dataset.save_to_disk`` writes."""
    path.mkdir(parents=True)
    stream(path / "data-00000-of-00001.arrow", table())
    files = [{"filename": "data-00000-of-00001.arrow"}]
    (path / "state.json").write_text(json.dumps({"_data_files": files}))
    (path / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return path


def saved_dict(path):
    saved(path / "train")
    (path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return path


def metadata_jsonl(path):
    return listed(path, "metadata.jsonl", lambda rows: map(json.dumps, rows))


def metadata_csv(path):
    def lines(rows):
        return ["file_name,label", *(",".join(row.values()) for row in rows)]

    return listed(path, "metadata.csv", lines)


def listed(path, name, lines):
    (path / "train" / "deep").mkdir(parents=True)
    rows = []
    for i, label in enumerate(LABELS):
        (path / "train" / "deep" / f"{i}.PNG").write_bytes(encoded(PIXELS[i]))
        rows.append({"file_name": f"deep/{i}.PNG", "label": NAMES[label]})
    (path / "train" / name).write_text("\n".join(lines(rows)))
    return path


def class_folders(path):
    for i, label in enumerate(LABELS):
        file = path / "train" / NAMES[label] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(PIXELS[i]))
    (path / "val" / "cat").mkdir(parents=True)
    (path / "val" / "cat" / "x.png").write_bytes(encoded(PIXELS[0]))
    return path


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def example(i, kind="txt"):
    label = {
        "txt": NAMES[LABELS[i]].encode() + b"\n",
        "cls": str(LABELS[i]).encode(),
        "json": json.dumps({"label": NAMES[LABELS[i]], "id": i}).encode(),
    }[kind]
    return {f"a/{i:04}.png": encoded(PIXELS[i]), f"a/{i:04}.{kind}": label}


def tars(path, kind="txt"):
    for i in range(2):
        members = {}
        for j in range(3):
            members |= example(3 * i + j, kind)
        shard(path / f"train-{i:03}.tar", members)
    return path


def tars_of_json(path):
    return str(tars(path, "json") / "train-{000..001}.tar")


def tars_of_numbers(path):
    return str(tars(path, "cls") / "train-*.tar")


def arrays(path):
    path.mkdir()
    labels = np.array(LABELS)[:, None]
    np.savez(path / "a.npz", train_images=PIXELS, train_labels=labels)
    return path / "a.npz"


KINDS = {
    kind.__name__: kind
    for kind in (
        *(parquet, parquet_with_a_card, saved, saved_dict, metadata_jsonl),
        *(metadata_csv, class_folders, tars, tars_of_json, tars_of_numbers, arrays),
    )
}


def keep(image, rng):
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_come_out_of_every_kind(kind, tmp_path):
    path = KINDS[kind](tmp_path / "set")
    nameless = kind in ("tars_of_numbers", "arrays")
    source = data.open_images(path, crop=keep)
    assert (len(source), source.classes) == (6, 3)
    assert source.names == (() if nameless else NAMES)
    batch = source.take(np.arange(6))
    order = np.argsort(LABELS, kind="stable") if kind == "class_folders" else range(6)
    np.testing.assert_array_equal(batch["label"], np.take(LABELS, order))
    np.testing.assert_array_equal(batch["image"], PIXELS[order])
    # What is trained on is never what is held out.
    with pytest.raises(FileNotFoundError, match="extra"):
        data.open_images(path, split="extra", crop=keep)
    # Any order, and someone else's numbers of the classes.
    rows = np.array([4, 1])
    np.testing.assert_array_equal(source.take(rows)["image"], batch["image"][rows])
    if not nameless:
        other = data.open_images(path, 4, classes=("owl", "bee", "dog", "cat"))
        assert other.classes == 4
        expected = np.array([3, 2, 0])[batch["label"]]
        np.testing.assert_array_equal(data.example_labels(other), expected)
        assert other.take(rows)["image"].shape == (2, 4, 4, 3)
    with pytest.raises((FileNotFoundError, ValueError), match="nothing"):
        data.open_images(tmp_path / "nothing")


def test_a_run_over_tars_goes_on_where_it_stopped(tmp_path):
    source = data.open_images(tars(tmp_path / "set"), crop=keep)

    def batches():
        return iter(data.batches(source, 2, epochs=3))

    begun = batches()
    seen = [next(begun) for _ in range(4)]
    rest = batches()
    rest.set_state(begun.get_state())
    whole = list(batches())
    assert len({tuple(b["index"]) for b in whole}) > 3
    for found, expected in zip([*seen, *rest], whole, strict=True):
        np.testing.assert_array_equal(found["image"], expected["image"])
        np.testing.assert_array_equal(found["image"], PIXELS[found["index"]])


def test_splits_are_found_by_their_usual_names(tmp_path):
    folder = class_folders(tmp_path / "a")
    assert len(data.open_images(folder, split="validation", classes=NAMES)) == 1
    rows = parquet(tmp_path / "b")
    names = [path.name for path in data.split_files(rows, "test")]
    assert names == ["test-00000-of-00001.parquet"]
    assert len(data.open_records(rows)) == 6
    for found, split, there in (
        (folder, "test", "no folder test or"),
        (rows, "validation", "test, train"),
        (saved(tmp_path / "c"), "test", "it has train"),
        (saved_dict(tmp_path / "d"), "test", "it has train"),
        (arrays(tmp_path / "e"), "test", "such as test_images"),
    ):
        with pytest.raises(FileNotFoundError, match=there):
            data.open_images(found, split=split)
    # A class called train is no split.
    for name in ("train", "car"):
        (tmp_path / "f" / name).mkdir(parents=True)
        (tmp_path / "f" / name / "x.png").write_bytes(encoded(PIXELS[0]))
    assert data.open_images(tmp_path / "f").names == ("car", "train")


def broken_image(path):
    shard(path / "a.tar", example(0) | {"b.jpg": b"\xff\xd8\xff none", "b.cls": b"cat"})


def huge_image(path):
    # A header alone of 9,000 by 9,000 pixels.
    content = bytearray(encoded(PIXELS[0]))
    content[16:24] = (9_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    shard(path / "a.tar", example(0) | {"b.png": bytes(content), "b.txt": b"cat"})


def no_label(path):
    shard(path / "a.tar", example(0) | {"b.png": encoded(PIXELS[0])})


def two_images(path):
    shard(path / "a.tar", example(0) | {"a/0000.jpg": encoded(PIXELS[0])})


def cut_off(path):
    content = shard(path / "a.tar", example(0) | example(1)).read_bytes()
    (path / "a.tar").write_bytes(content[: len(content) // 4])


def damaged_header(path):
    content = bytearray(shard(path / "a.tar", example(0) | example(1)).read_bytes())
    content[1024 + 150] ^= 1
    (path / "a.tar").write_bytes(content)


def compressed_tar(path):
    path.mkdir()
    with tarfile.open(path / "a.tar", "w:gz"):
        pass


def wrong_label(path):
    wrong = {"b.png": encoded(PIXELS[0]), "b.cls": b"9" * 40}
    shard(path / "a.tar", example(0, "cls") | wrong)


def mixed_labels(path):
    wrong = {"b.png": encoded(PIXELS[0]), "b.json": b'{"label": 3.5}'}
    shard(path / "a.tar", example(0, "json") | wrong)


def links(path):
    path.mkdir()
    with tarfile.open(path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)


def outside(path):
    listed(path, "metadata.jsonl", lambda rows: ['{"file_name": "../x", "label": 1}'])


def not_there(path):
    listed(path, "metadata.jsonl", lambda rows: ['{"file_name": "x.jpg", "label": 1}'])


def no_file_name(path):
    listed(path, "metadata.jsonl", lambda rows: ['{"label": 1}'])


def column(name, values):
    """Write rows with another column of images or labels."""

    def write(path):
        path.mkdir()
        whole = table()
        number = whole.schema.get_field_index(name)
        changed = whole.set_column(number, name, [values])
        pyarrow.parquet.write_table(changed, path / "a.parquet")

    return write


def compressed_rows(path):
    path.mkdir()
    stream(path / "a.arrow", table(), compression="zstd")


def wrong_offsets(path):
    saved(path)
    file = path / "data-00000-of-00001.arrow"
    first = encoded(PIXELS[0])
    length = np.array([0, len(first)], np.int32).tobytes()
    content = file.read_bytes()
    assert length in content
    file.write_bytes(content.replace(length, b"\0\0\0\0\xff\xff\xff\x7f"))


def floats(path):
    path.mkdir()
    np.savez(path / "a.npz", images=PIXELS / 255.0, labels=LABELS)


def fewer_labels(path):
    path.mkdir()
    np.savez(path / "a.npz", images=PIXELS, labels=LABELS[1:])


def no_pixels(path):
    path.mkdir()
    np.savez(path / "a.npz", images=PIXELS[:, :0, :0], labels=LABELS)


def read_all(source):
    return source.take(np.arange(len(source)))


HOSTILE = {
    broken_image: ("a.tar", "record 1 cannot .*'b' of .*a.tar cannot be read as"),
    huge_image: ("a.tar", "9,000 by 9,000 pixels"),
    no_label: ("a.tar", "the image 'b' has no .cls, .json, .txt with its class"),
    two_images: ("a.tar", "'a/0000.jpg' is there twice, or another image of it"),
    cut_off: ("a.tar", "a.tar cannot be read"),
    damaged_header: ("a.tar", "the header at byte 1,024 is damaged"),
    compressed_tar: ("a.tar", "a.tar cannot be read"),
    wrong_label: ("a.tar", r"has the label 9999999999: .* from 0 to 1048575"),
    mixed_labels: ("a.tar", "record 1 .* label 3.5|record 0 .* label 'cat'"),
    links: ("a.tar", "holds no image: members must end in .jpg"),
    outside: ("", "names the file '../x', which is not in its folder"),
    not_there: ("", r"x.jpg is missing: row 0 of .*metadata.jsonl"),
    no_file_name: ("", "row 0 of .*metadata.jsonl has no file_name: it has label"),
    column("kind", [0, 1, 2, 3, 1, 0]): ("", "record 3 of .* label 3: .* 0 to 2"),
    column("kind", [0, 1, 2, -1, 1, 0]): ("", "record 3 of .* label -1"),
    column("picture", ["x"] * 6): ("", "record 0 .*picture holds no image's bytes"),
    compressed_rows: ("a.arrow", "no Arrow stream .its rows are compressed"),
    wrong_offsets: ("", "row group 0, cannot be read: .*(offset|Offset)"),
    floats: ("a.npz", r"images .6, 10, 8, 3. float64 .*: give uint8 images"),
    fewer_labels: ("a.npz", r"labels .5,.: give uint8"),
    no_pixels: ("a.npz", r"no pixels in images, which is .6, 0, 0, 3."),
}


@pytest.mark.parametrize(
    ("write", "file", "message"),
    [(write, *expected) for write, expected in HOSTILE.items()],
    ids=[f"{i}-{write.__name__}" for i, write in enumerate(HOSTILE)],
)
def test_hostile_sets_are_refused_by_name(write, file, message, tmp_path):
    write(tmp_path / "set")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_all(data.open_images(tmp_path / "set" / file, crop=keep))


@pytest.mark.parametrize("classes", [0, [], ()], ids=str)
def test_no_classes_are_refused(classes, tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    with pytest.raises(ValueError, match="classes must be some"):
        data.open_images(tmp_path / "a.npz", 8, classes=classes)


def test_columns_that_cannot_be_told_apart_are_asked_for(tmp_path):
    whole = table(metadata=False)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(whole, path)
    with pytest.raises(ValueError, match="say by image= which of"):
        data.open_images(path)
    with pytest.raises(ValueError, match="has no column x: it has picture, kind"):
        data.image_rows(path, image="picture", label="x")
    source = data.image_rows(path, 4, image="picture", label="kind")
    np.testing.assert_array_equal(data.example_labels(source), LABELS)


def test_rows_that_are_read_shuffled_are_kept(tmp_path, monkeypatch):
    path = parquet(tmp_path / "set") / "data" / "test-00000-of-00001.parquet"
    pyarrow.parquet.write_table(table(), path, row_group_size=2)
    source = data.image_rows(path, crop=keep)
    reads = []
    read = data.columns._Parquet._read

    def counted(rows, group, columns=None):
        reads.append(group)
        return read(rows, group, columns)

    monkeypatch.setattr(data.columns._Parquet, "_read", counted)
    for _ in range(2):
        source.take(RNG.permutation(6))
    assert sorted(reads) == [0, 1, 2]
    monkeypatch.setattr(data.columns, "CACHED", 1)
    data.image_rows(path, crop=keep).take(np.array([0, 3, 0, 1]))
    assert [group for group in reads[3:] if group < 2][-3:] == [0, 1, 0]
