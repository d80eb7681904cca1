"""Names of the hub: from its cache, laid out as its client does, or why not."""

import shutil
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from jaxkd import data
from jaxkd.hub import model_folder
from jaxkd.interop import load_pretrained

hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
errors = pytest.importorskip("huggingface_hub.errors")
utils = pytest.importorskip("huggingface_hub.utils")

GOLDEN = Path(__file__).parent / "golden"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/tiny-llama"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of one model and a network that is off."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    model = folder / f"models--{NAME.replace('/', '--')}"
    snapshot = model / "snapshots" / COMMIT
    for made in (snapshot, model / "blobs", model / "refs"):
        made.mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    source = GOLDEN / "hf" / "llama"
    for number, file in enumerate(["config.json", "model.safetensors"]):
        shutil.copyfile(source / file, model / "blobs" / f"{number:040}")
        (snapshot / file).symlink_to(Path("../../blobs") / f"{number:040}")
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_model_of_the_cache_is_read_offline(revision, cache):
    network, variables = load_pretrained(NAME, revision=revision)
    _, expected = load_pretrained(GOLDEN / "hf" / "llama")
    assert network.spec[0] == "llama"
    np.testing.assert_array_equal(
        variables["params"]["embed"]["embedding"],
        expected["params"]["embed"]["embedding"],
    )
    assert model_folder(NAME) == cache


def test_a_folder_goes_before_a_name(tmp_path):
    here = tmp_path / NAME
    here.mkdir(parents=True)
    assert model_folder(NAME) == Path(NAME)
    with pytest.raises(ValueError, match="is a path: revision 'main' is of the hub's"):
        model_folder(NAME, "main")
    for path in ("a/b/c", "./a/b", "/a/b", "../b", tmp_path / "none"):
        assert model_folder(path) == Path(path)


@pytest.mark.parametrize(
    "read", [load_pretrained, data.load_tokenizer, data.load_chat_template]
)
def test_what_is_not_in_the_cache_is_said_offline(read):
    with pytest.raises(FileNotFoundError, match=r"'owner/other' is no folder") as e:
        read("owner/other")
    assert "its cache" in str(e.value)
    assert "`hf download owner/other`" in str(e.value)
    with pytest.raises(
        FileNotFoundError, match="the hub cannot be reached, and its ca"
    ):
        read(NAME, revision="v2")


def failing(kind):
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))

    def download(*_, **__):
        raise kind("\x1b[2J refused", response=response)

    return download


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "GatedRepoError",
            "is gated: accept its terms at http.*/owner/new, then `hf au",
        ),
        ("RepositoryNotFoundError", "the hub has no model of that name that you may s"),
        ("RevisionNotFoundError", "the hub's model of that name has no revision 'v9'"),
        ("HfHubHTTPError", r"the hub did not give it \(\?\[2J refused"),
    ],
)
def test_the_hubs_answers_say_what_to_do(kind, message, monkeypatch):
    error = getattr(errors, kind)
    monkeypatch.setattr(hub, "snapshot_download", failing(error))
    with pytest.raises(FileNotFoundError, match=message):
        model_folder("owner/new", "v9")


def test_pickles_are_never_fetched(cache, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert model_folder("owner/new", "v1") == cache
    assert (asked["name"], asked["revision"]) == ("owner/new", "v1")
    files = ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja"]
    others = ["pytorch_model.bin", "model.pt", "x.pkl", "run.py", "original/a.json"]
    kept = utils.filter_repo_objects(
        [*files, *others, "consolidated.safetensors"],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert [*kept] == files


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"install jaxkd-distill\[hub\]"):
        load_pretrained("owner/other")
