"""Folders of data sets as Hugging Face has them: the files of a split, and features."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkd.arguments import checked
from jaxkd.files import check_plain, inside
from jaxkd.untrusted import LARGEST_JSON, blaming, json_file, json_from, read_bytes

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits, and the words of files' and folders' names that stand for them."""

SUFFIXES = (".parquet", ".arrow", ".jsonl", ".csv", ".array_record")
"""Ends of the names of a data set's files; a folder's are those of the first it has."""

STATE, DICT, INFO = "state.json", "dataset_dict.json", "dataset_info.json"
"""Files that ``save_to_disk`` of `datasets` writes beside the rows."""


@checked()
def words_of(split: str) -> tuple[str, ...]:
    """Return the words that stand for a split, its own name first."""
    return tuple(dict.fromkeys((split, *SPLITS.get(split, ()))))


@checked()
def split_files(
    folder: str | Path, split: str = "train", suffixes: Sequence[str] = SUFFIXES
) -> list[Path]:
    """Return the files of one split of a data set, in order.

    The folder is what ``save_to_disk`` of `datasets` has written, of one data set or a
    dict of them; or it has the files at any depth, and a word of the path, such as
    ``data/train-00000-of-00002.parquet``, says of which split they are. Where no file
    says so, all are of ``train``.

    Args:
        folder: of the data set.
        split: ``train``, ``validation``, ``test``, each by any of its usual names, or a
            word of the user's.
        suffixes: ends of the files' names; those of the first that there is are taken.

    Raises:
        FileNotFoundError: the folder holds no such file, or none of the split.
        ValueError: a file of ``save_to_disk`` is damaged, or names others outside.
    """
    folder = Path(folder)
    if (folder / DICT).is_file():
        path = folder / DICT
        names = _texts(json_file(path), "splits", path)
        chosen = [name for name in words_of(split) if name in names]
        if not chosen:
            raise _no_split(folder, split, names)
        return split_files(inside(folder, chosen[0], path), split, suffixes)
    if (folder / STATE).is_file():
        path = folder / STATE
        state = json_file(path)
        own = state.get("_split") if isinstance(state, dict) else None
        # A data set without a dict has one split, which may have no name.
        if split != "train" and own not in words_of(split):
            raise _no_split(folder, split, [str(own or "train")])
        return [
            inside(folder, name, path) for name in _texts(state, "_data_files", path)
        ]
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part[0] in "._" for part in path.relative_to(folder).parts)
    ]
    for suffix in suffixes:
        files = [path for path in found if path.name.endswith(suffix)]
        if files:
            break
    else:
        raise FileNotFoundError(
            f"{folder} holds no file that ends in {' or '.join(suffixes)}: name a "
            "folder of a data set"
        )
    by_split: dict[str, list[Path]] = {}
    for path in files:
        name = _split_of(path.relative_to(folder), split) or "train"
        by_split.setdefault(name, []).append(path)
    if split not in by_split:
        raise _no_split(folder, split, by_split)
    return by_split[split]


def _no_split(folder: Path, split: str, there: Any) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder} has no split {split!r}: it has {', '.join(sorted(there)) or 'none'}"
    )


def _split_of(path: Path, asked: str) -> str | None:
    """Return the split that a path says, by the file's name before the folders'."""
    names = {word: name for name, words in SPLITS.items() for word in words}
    names[asked] = asked
    for part in reversed(path.parts):
        for word in re.split(r"[^a-zA-Z]+", part):
            if word.lower() in names or word in names:
                return names.get(word, names.get(word.lower()))
    return None


def _texts(found: Any, key: str, path: Path) -> list[str]:
    """Return the texts of a list in a file; of files in it, their names."""
    items = found.get(key) if isinstance(found, dict) else None
    if not isinstance(items, list):
        raise ValueError(f"{path} has no list {key!r}: save the data set again")
    texts: list[Any] = [
        item.get("filename") if isinstance(item, dict) else item for item in items
    ]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} names nothing in {key!r}: save the data set again")
    check_plain(texts, f"{path} names one that")
    return texts


@checked()
def features_of(schema: Any, folder: Path) -> Mapping[str, Any]:
    """Return the features that a data set's files say, as `datasets` writes them.

    They are in the schema of its rows, in the folder's dataset_info.json, or in the
    head of its README.md.

    Args:
        schema: of the rows, pyarrow's.
        folder: with the files.

    Returns:
        By column such as ``{"_type": "ClassLabel", "names": [...]}``; empty where
        nothing is said.

    Raises:
        ValueError: a file is damaged.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    found = {}
    if text is not None:
        where = f"the features of the rows in {folder}"
        found = _below(json_from(text, where, LARGEST_JSON), "info", "features")
    elif (folder / INFO).is_file():
        found = _below(json_file(folder / INFO), "features")
    elif (folder / "README.md").is_file():
        found = _card_features(folder / "README.md")
    return found if isinstance(found, dict) else {}


def _below(found: Any, *keys: str) -> Any:
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _card_features(path: Path) -> dict[str, Any]:
    """Return features of the YAML at the head of a data set's card."""
    import yaml

    with blaming(str(path)):
        head = read_bytes(path, LARGEST_JSON).decode().split("---\n")
        if len(head) < 3 or head[0]:
            return {}
        info = _below(yaml.safe_load(head[1]), "dataset_info")
        info = info[0] if isinstance(info, list) and len(info) == 1 else info
        features = {}
        for column in _below(info, "features") or ():
            kind = column["dtype"]
            if names := _below(kind, "class_label", "names"):
                names = [names[key] for key in sorted(names, key=int)]
                features[column["name"]] = {"_type": "ClassLabel", "names": names}
            elif kind == "image":
                features[column["name"]] = {"_type": "Image"}
        return features
