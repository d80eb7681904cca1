"""JSON and arrays of unknown origin: read as NumPy and json do, or refused by name."""

import io
import json
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxkd.untrusted import DEEPEST, array_from, arrays_from, json_from

LIMIT = 10_000
ARRAYS = {
    "floats": np.arange(6, dtype=">f8").reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int8).reshape(2, 3)),
    "one": np.float16(3.0),
    "none": np.zeros((0, 5), bool),
    "names": np.array(["a", "äö"]),
}


def npy(array, **settings):
    file = io.BytesIO()
    np.save(file, array, **settings)
    return file.getvalue()


def header(descr, shape, data=b"", version=1, order="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"
    return raw(text.encode(), data, version)


def raw(text, data=b"", version=1):
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def npz(write=np.savez, **arrays):
    file = io.BytesIO()
    write(file, **arrays)
    return file.getvalue()


def archive(*members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, content in members:
            out.writestr(name, content)
    return file.getvalue()


def equal(found, expected):
    np.testing.assert_array_equal(found, expected)
    return found.dtype == expected.dtype and found.flags.writeable


def test_good_files_are_read_as_numpy_and_json_read_them():
    for array in ARRAYS.values():
        assert equal(array_from(npy(array), "it", LIMIT), np.asarray(array))
    for write in (np.savez, np.savez_compressed):
        content = npz(write, **ARRAYS)
        for source in (content, io.BytesIO(content)):
            found = arrays_from(source, "it", LIMIT)
            assert list(found) == list(ARRAYS)
            assert all(equal(found[k], np.asarray(v)) for k, v in ARRAYS.items())
    assert arrays_from(npz(), "it", 0) == {}
    text = '{"a": [1, 2.5, "ü", null, {"b": [[]]}]}'
    assert json_from(text, "it", 100) == json.loads(text)
    assert json_from(text.encode(), "it", 100) == json.loads(text)
    deep = "[" * DEEPEST + "1" + "]" * DEEPEST
    assert json_from(deep, "it", 1000) == json.loads(deep)


BAD_ARRAYS = {
    "empty": (b"", "magic"),
    "text": (b"hello", "magic"),
    "a pickle": (pickle.dumps([1]), "magic"),
    "an archive": (npz(a=np.ones(2)), "magic"),
    "the magic alone": (b"\x93NUMPY", "magic"),
    "version 9": (b"\x93NUMPY\x09\x00" + bytes(20), r"version \(9, 0\)"),
    "half a header": (npy(np.ones(4))[:40], "EOF"),
    "half the numbers": (npy(np.ones(4))[:-9], "23 bytes .* not 32"),
    "more numbers": (npy(np.ones(4)) + b"x", "33 bytes .* not 32"),
    "80 TB": (header("'<f8'", (10**13,)), "asks for"),
    "negative": (header("'<f8'", (-1, 2)), "shape"),
    "overflow": (header("'<f8'", (2**32, 2**32)), "asks for"),
    "empty but huge": (header("'<f8'", (0, 2**62)), "asks for"),
    "2^40 nothings": (header("'<U0'", (2**40,)), "not numbers"),
    "voids": (header("'|V0'", (2**40,)), "not numbers"),
    "objects": (npy(np.array([[], 1], object), allow_pickle=True), "object"),
    "times": (npy(np.array([1], "m8[s]")), "timedelta64"),
    "fields": (npy(np.zeros(2, "f4,f4")), "not numbers"),
    "rows of rows": (header("('<f4', (2, 3))", (4,)), "not numbers"),
    "an unknown type": (header("'<q9'", (1,)), ""),
    "a type that is a list": (header("[1, 2]", (1,)), ""),
    "a shape of floats": (header("'<f4'", "(1.5,)"), "shape"),
    "an order that is a word": (header("'<f4'", (1,), order="'F'"), "fortran"),
    "no dictionary": (raw(b"[1]"), "dictionary"),
    "keys of two kinds": (raw(b"{1: 2, 'a': 3}"), ""),
    "code": (raw(b"__import__('os').abort()"), ""),
    "parentheses": (raw(b"(" * 9000), ""),
    "signs": (raw(b"-" * 9000 + b"1"), ""),
    "a long header": (raw(b" " * 30_000, version=2), "bytes"),
    "a header of 4 GB": (b"\x93NUMPY\x02\x00" + b"\xff" * 4, "EOF"),
    "no text": (raw(b"\xff\x00\xfe"), ""),
    "too many dimensions": (header("'|i1'", (1,) * 65, b"\0"), ""),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_a_bad_array_is_refused_alone_and_in_an_archive(what):
    content, reason = BAD_ARRAYS[what]
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"upload cannot be read: .*{reason}"):
        array_from(content, "upload", LIMIT)
    with pytest.raises(ValueError, match=f"f.npz cannot be read: 'a.npy' .*{reason}"):
        arrays_from(archive(("a.npy", content)), "f.npz", LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def forged(content, claimed):
    """Return an archive that claims another size of what it holds."""
    actual = zipfile.ZipFile(io.BytesIO(content)).infolist()[0].file_size
    assert content.count(actual.to_bytes(4, "little")) == 2
    return content.replace(actual.to_bytes(4, "little"), claimed.to_bytes(4, "little"))


BOMB = archive(("a.npy", npy(np.zeros(2_000_000))))
SMALL = header("'|i1'", (1000,), bytes(1000))
BAD_ARCHIVES = {
    "empty": (b"", "not a zip"),
    "text": (b"PK\x03\x04hello", "not a zip"),
    "one array": (npy(np.ones(2)), "not a zip"),
    "cut off": (npz(a=np.ones(9))[:-30], "not a zip"),
    "a bomb": (BOMB, "16000128 bytes, but may have 10000"),
    "a bomb that says it is small": (forged(BOMB, len(SMALL)), ""),
    "two that are too large together": (npz(a=np.ones(700), b=np.ones(700)), "'b.npy'"),
    "one name twice": (
        archive(("a.npy", SMALL), ("b.npy", SMALL)).replace(b"b.npy", b"a.npy"),
        "there twice",
    ),
    "another file": (archive(("a.txt", b"hello")), "no .npy file"),
    "LZMA": (archive(("a.npy", SMALL), method=zipfile.ZIP_LZMA), "not compressed as"),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_a_bad_archive_is_refused(what):
    content, reason = BAD_ARCHIVES[what]
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"f.npz cannot be read: .*{reason}"):
        arrays_from(content, "f.npz", LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of a damaged header
def test_damage_is_read_or_refused_and_nothing_else():
    """One or several bytes changed anywhere, or the end cut off."""
    rng = np.random.default_rng(0)
    messages = []
    for read, good in (
        (array_from, npy(ARRAYS["floats"])),
        (arrays_from, npz(np.savez_compressed, a=np.ones((3, 4)), b=np.arange(5))),
    ):
        for _ in range(1000):
            content = bytearray(good[: rng.integers(1, len(good) + 1)])
            if rng.random() < 0.8:
                content = bytearray(good)
            for where in rng.integers(0, len(content), rng.integers(1, 4)):
                content[where] = rng.integers(256)
            try:
                read(bytes(content), "it", LIMIT)
            except ValueError as error:
                messages.append(str(error))
    assert 1000 < len(messages) < 2000
    assert all(x.startswith("it cannot be read: ") for x in messages)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property"),
        ('{"a": 1} 2', "Extra data"),
        ("[" * 100_000, "recursion|nested"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested more than 64"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64"),
        ('{"a": {"b": 1, "b": 2}}', "a key twice"),
        ("1" * 5000, "4300 digits"),
        (b"\xff\xfe", "utf-8"),
        (" " * 200_001, r"has 200001 bytes, but may have 200000"),
    ],
)
def test_bad_json_is_refused(text, reason):
    with pytest.raises(ValueError, match=f"^config.json .*({reason})") as error:
        json_from(text, "config.json", 200_000)
    assert len(str(error.value)) < 200
