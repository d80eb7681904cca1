"""Models of the Hugging Face hub by their names, from its cache where they are there.

The client, ``huggingface_hub``, is the extra ``hub`` and imported only for a name. It
fetches safetensors, JSON and templates; pickles never.
"""

import re
from pathlib import Path

from jaxkd.arguments import checked
from jaxkd.files import kept_aside
from jaxkd.untrusted import shown

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""A model's name: an owner and a model, or the model alone of the oldest ones."""

FETCHED = ("*.safetensors", "*.json", "*.jinja", "SHA256SUMS")
LEFT = ("*/*", "consolidated*")
"""Folders within, and the same weights once more as Mistral's own code names them."""


@checked()
def model_folder(name: str | Path, revision: str | None = None) -> Path:
    """Return a model's folder: the one of that path, or the hub's model of that name.

    What cannot be a name is returned as a path, whether it is there or not.

    Args:
        name: a path, or ``owner/model``. A folder that is here goes first.
        revision: of the hub's model: a branch, tag or commit; None for the newest.

    Raises:
        FileNotFoundError: neither a folder nor a model that can be fetched or is in the
            cache. It says why, and what to do.
        ValueError: a revision of a folder that is here.
        ImportError: ``huggingface_hub`` is not installed.
    """
    path = Path(name)
    if path.exists() or kept_aside(path).exists() or not NAME.fullmatch(str(name)):
        if revision is not None:
            raise ValueError(f"{path} is a path: revision {revision!r} is of the hub's")
        return path
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError:
        raise ImportError(
            f"{str(name)!r} is no folder here. To fetch the model of that name from "
            "the Hugging Face hub, install jaxkd-distill[hub]"
        ) from None
    what = f"{str(name)!r} is no folder here"
    try:
        found = snapshot_download(
            str(name),
            revision=revision,
            allow_patterns=[*FETCHED],
            ignore_patterns=[*LEFT],
            library_name="jaxkd",
        )
    except errors.GatedRepoError:
        remedy = (
            f"the hub's model of that name is gated: accept its terms at "
            f"{constants.ENDPOINT}/{name}, then `hf auth login`"
        )
    except errors.RepositoryNotFoundError:
        remedy = (
            "the hub has no model of that name that you may see: correct it, or "
            "`hf auth login` for a private one"
        )
    except errors.RevisionNotFoundError:
        remedy = f"the hub's model of that name has no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        remedy = (
            f"the hub cannot be reached, and its cache {constants.HF_HUB_CACHE} has "
            f"not the model of that name: go online, or fetch it by `hf download "
            f"{name}` where you are and copy the cache"
        )
    except (errors.HFValidationError, OSError) as error:
        remedy = f"the hub did not give it ({shown(str(error))}): try again"
    else:
        return Path(found)
    raise FileNotFoundError(f"{what}, and {remedy}")
