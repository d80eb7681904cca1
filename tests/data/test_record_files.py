"""Records of every kind of file, in any order, and the refusal of damaged ones."""

import gzip
import json
import lzma

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from jaxkd import data

RECORDS = [{"text": f"text {i} é\u2028", "label": i} for i in range(7)]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS).encode()


def json_lines(path):
    path.write_bytes(LINES)


def json_lines_without_an_end(path):
    path.write_bytes(LINES.rstrip(b"\n"))


def compressed(path):
    path.write_bytes({".xz": lzma, ".gz": gzip}[path.suffix].compress(LINES))


def parquet(path):
    table = pyarrow.Table.from_pylist(RECORDS)
    pyarrow.parquet.write_table(table, path, row_group_size=3)


def array_record(path):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for line in LINES.splitlines():
        writer.write(line)
    writer.close()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", json_lines),
        ("a.jsonl", json_lines_without_an_end),
        ("a.jsonl.xz", compressed),
        ("a.jsonl.gz", compressed),
        ("a.parquet", parquet),
        ("a.array_record-00000-of-00001", array_record),
    ],
)
def test_files_hold_records_in_any_order(tmp_path, name, write):
    write(tmp_path / name)
    records = data.open_records(tmp_path / name)
    assert len(records) == 7
    assert [records[i] for i in (6, 0, 3)] == [RECORDS[i] for i in (6, 0, 3)]
    assert list(records) == RECORDS
    both = data.open_records(tmp_path / name, tmp_path / name)
    assert list(both) == RECORDS * 2
    assert list(data.texts(both)) == [r["text"] for r in RECORDS * 2]
    for sequence in (records, both):
        with pytest.raises(IndexError):
            sequence[len(sequence)]


def test_a_table_with_quotes_has_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('sentence,label\n"so, ""so""",1\n,0\n')
    assert list(data.open_records(path)) == [
        {"sentence": 'so, "so"', "label": "1"},
        {"sentence": "", "label": "0"},
    ]


def test_a_table_has_columns(tmp_path):
    path = tmp_path / "a.tsv.xz"
    path.write_bytes(lzma.compress(b'sentence\tlabel\nso "so\t1\n\t0\n'))
    assert list(data.open_records(path)) == [
        {"sentence": 'so "so', "label": "1"},
        {"sentence": "", "label": "0"},
    ]
    path.write_bytes(lzma.compress(b"sentence\tlabel\nso\t1\nso so"))
    with pytest.raises(ValueError, match=r"row 3 has 1 columns.*sentence, label"):
        data.open_records(path)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("line", ["one", " two", "three"]),
        ("paragraph", ["one\n two", "three"]),
        ("file", ["one\n two\n \n\nthree\n"]),
    ],
)
def test_a_text_has_parts(tmp_path, part, expected):
    path = tmp_path / "a.txt"
    path.write_text("one\n two\n \n\nthree\n")
    assert list(data.texts(data.open_records(path, part=part))) == expected


@pytest.mark.parametrize("other", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"])
def test_only_line_feeds_end_a_line(tmp_path, other):
    (tmp_path / "a.txt").write_bytes(f"one{other}two\nthree\n".encode())
    for part, expected in (
        ("line", [f"one{other}two", "three"]),
        ("paragraph", [f"one{other}two\nthree"]),
    ):
        records = data.open_records(tmp_path / "a.txt", part=part)
        assert list(data.texts(records)) == expected


def test_what_windows_adds_to_a_text_is_no_part_of_it(tmp_path):
    def read(name, content, **options):
        (tmp_path / name).write_bytes(content)
        plain = list(data.open_records(tmp_path / name, **options))
        content = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
        (tmp_path / name).write_bytes(content)
        assert list(data.open_records(tmp_path / name, **options)) == plain

    read("a.tsv", b"text\tlabel\none\t1\ntwo\t0\n")
    for part in ("line", "paragraph", "file"):
        read("a.txt", b"one\ntwo\n\nthree\n", part=part)


def test_records_feed_the_pipeline(tmp_path):
    json_lines(tmp_path / "a.jsonl")

    def decode(record, rng):
        tokens = np.frombuffer(record["text"].encode()[:6], np.uint8).astype(np.int32)
        return {"input_ids": tokens, "label": np.int32(record["label"])}

    records = data.open_records(tmp_path / "a.jsonl")
    source = data.RecordSource("lines", records, decode, 7)
    (batch,) = data.batches(source, 7, epochs=1)
    for row, label in zip(batch["input_ids"], batch["label"], strict=True):
        assert bytes(row.tolist()) == f"text {label}".encode()


def test_texts_of_tfds_are_bytes():
    assert list(data.texts([{"text": "é".encode()}])) == ["é"]
    with pytest.raises(ValueError, match=r"record 1 has no text in its field 'body'"):
        list(data.texts([{"body": "a"}, {"body": 3}], "body"))
    with pytest.raises(ValueError, match=r"field 'text': it has .*'body': 'str'"):
        list(data.texts([{"body": "a"}]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.xz", b"no such thing", r"a\.jsonl\.xz is damaged.*fetch it again"),
        ("a.txt", b"\xff", r"a\.txt is damaged.*utf-8"),
        ("a.tsv", b"text\ttext\na\tb\n", r"a\.tsv names a column twice: text, text"),
        ("a.parquet", b"no such thing", r"a\.parquet is damaged"),
        ("a.array_record", b"no such thing", r"a\.array_record is damaged"),
        ("a.xls", b"a,b", r"a\.xls is of no kind that is known: name it \.jsonl"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.open_records(tmp_path / name)


def test_lines_that_are_no_objects_are_refused(tmp_path, unchecked_shapes):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\r\n\n[1]\n{"text": \n')
    records = data.open_records(path)
    with pytest.raises(ValueError, match=r"a\.jsonl: line 4 is a list"):
        records[1]
    with pytest.raises(ValueError, match=r"a\.jsonl: line 5 is no JSON"):
        records[2]


def test_only_lines_without_anything_are_passed_over(tmp_path, unchecked_shapes):
    (tmp_path / "a.jsonl").write_bytes(b'\r\n{"a": 1}\r\n\n3\n')
    records = data.open_records(tmp_path / "a.jsonl")
    assert len(records) == 2
    assert records[0] == {"a": 1}
    with pytest.raises(ValueError, match=r"a\.jsonl: line 4 is a int"):
        records[1]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl is missing"):
        data.open_records(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="at least one file"):
        data.open_records()
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert len(data.open_records(tmp_path / "a.jsonl")) == 0
