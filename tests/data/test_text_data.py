"""Windows of text, tiny Shakespeare, and files of tokens."""

import lzma

import numpy as np
import pytest

from jaxkd import data


def test_windows_hold_every_token_and_the_next():
    windows = data.Windows("toy", np.arange(12, dtype=np.uint8), 3, 12)
    assert len(windows) == 3
    batch = windows.take(np.array([0, 2]))
    np.testing.assert_array_equal(batch["input_ids"], [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_array_equal(batch["label"], [[1, 2, 3], [7, 8, 9]])
    assert batch["input_ids"].dtype == np.int32
    close = data.Windows("toy", np.arange(12), 3, 12, stride=1)
    assert len(close) == 9
    np.testing.assert_array_equal(close.take(np.array([8]))["label"], [[9, 10, 11]])
    assert close.fingerprint != windows.fingerprint


def test_batches_go_through_all_windows():
    windows = data.Windows("toy", np.arange(25), 4, 25)
    batches = list(data.batches(windows, 2, epochs=1, seed=0))
    assert len(batches) == 3
    seen = np.concatenate([batch["input_ids"].ravel() for batch in batches])
    assert sorted(seen) == list(range(24))


def test_bad_texts_are_refused():
    with pytest.raises(ValueError, match=r"'toy' has 4 tokens.*need 5"):
        data.Windows("toy", np.arange(4), 4, 9)
    with pytest.raises(ValueError, match=r"length and stride must be at least 1"):
        data.Windows("toy", np.arange(9), 4, 9, stride=0)
    with pytest.raises(ValueError, match=r"tokens from 5 to 10.*0 to 8"):
        data.Windows("toy", np.arange(11), 5, 9).take(np.array([1]))


def test_bad_tokens_are_refused(unchecked_shapes):
    with pytest.raises(ValueError, match=r"a row of integers, got float64"):
        data.Windows("toy", np.ones(9), 4, 9)


def test_shakespeare_is_cut_in_ten(monkeypatch, tmp_path):
    (tmp_path / "text").mkdir()
    text = "To be, or not to be: that is the question.\n" * 10
    file = tmp_path / "text" / "tiny_shakespeare.txt.xz"
    file.write_bytes(lzma.compress(text.encode()))
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    found = data.tiny_shakespeare(8)
    symbols = sorted(set(text))
    assert found.train.classes == found.test.classes == len(symbols)
    ids = found.train.take(np.array([1]))["input_ids"][0]
    assert "".join(symbols[i] for i in ids) == text[8:16]
    ids = found.test.take(np.array([0]))["input_ids"][0]
    assert "".join(symbols[i] for i in ids) == text[387:395]
    file.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"is damaged.*fetch it again"):
        data.tiny_shakespeare(8)


def test_token_files_are_read_in_place(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    with pytest.raises(FileNotFoundError, match=r"corpus/train\.npy"):
        data.token_files("corpus", 4, 100)
    for split, size in (("train", 50), ("test", 20)):
        np.save(tmp_path / "corpus" / f"{split}.npy", np.arange(size, dtype=np.uint16))
    found = data.token_files("corpus", 4, 100)
    assert isinstance(found.train.tokens, np.memmap)
    assert (len(found.train), len(found.test)) == (12, 4)
    (tmp_path / "corpus" / "test.npy").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"no file of numpy\.save"):
        data.token_files("corpus", 4, 100)
