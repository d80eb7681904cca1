"""Classifiers of images by name or by folder, and how each of them sees a picture."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import data, models
from jaxkd.arguments import checked, unknown_name
from jaxkd.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from jaxkd.interop import load_pretrained
from jaxkd.network import Network
from jaxkd.recipes.text_methods import Option
from jaxkd.types import Variables

SMALL = 96
"""Pixels below which images are taken whole, and networks have stems for small ones."""

CIFAR = ("cifar_resnet", "wide_resnet", "vgg", "shufflenet_v1", "shufflenet_v2", "cnn")
"""Constructors of networks for images of 32 pixels."""


def _patches(size: int) -> dict[str, int]:
    """Return patches of 16 pixels, smaller where there would be few of them."""
    sides = (16, 8, 7, 4, 3, 2, 1)
    patch = next(x for x in sides if size % x == 0 and x <= max(size // 7, 1))
    return {"image_size": size, "patch_size": patch}


def _zoo(size: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return constructors and their arguments by the field's names, for a size."""
    small = size < SMALL
    stem, form = ("cifar", "cifar") if small else ("imagenet", "imagenet")
    found: dict[str, tuple[str, dict[str, Any]]] = {
        f"resnet{depth}": ("cifar_resnet", {"depth": depth})
        for depth in (8, 14, 20, 32, 44, 56, 110)
    }
    for depth in (18, 34, 50, 101, 152):
        found[f"resnet{depth}"] = "imagenet_resnet", {"depth": depth, "stem": stem}
    for depth in (8, 32):
        wide = {"depth": depth, "widths": (32, 64, 128, 256)}
        found[f"resnet{depth}x4"] = "cifar_resnet", wide
    for depth, width in ((16, 1), (16, 2), (28, 10), (40, 1), (40, 2)):
        found[f"wrn_{depth}_{width}"] = "wide_resnet", {"depth": depth, "width": width}
    for depth in (8, 11, 13, 16, 19):
        found[f"vgg{depth}"] = "vgg", {"depth": depth}
    for name in ("shufflenet_v1", "shufflenet_v2", "cnn"):
        found[name] = name, {}
    width = {"form": form, "width": 0.5 if small else 1.0}
    found["mobilenet_v2"] = "mobilenet_v2", width
    for name in ("tiny", "small", "base"):
        found[f"vit_{name}"] = "vit", {"size": name, **_patches(size)}
        found[f"swin_{name}"] = "swin", {"size": name, "image_size": size}
        found[f"convnext_{name}"] = "convnext", {"size": name}
    return found


@checked()
@dataclass(frozen=True)
class Model:
    """A classifier of images.

    Attributes:
        name: as the recipe says it.
        network: in its own dtype.
        variables: of a folder; None of a network that is still to be trained.
        processor: what it does with a picture.
        classes: their names, empty if nothing says them.
    """

    name: str
    network: Network
    variables: Variables | None
    processor: data.ImageProcessor
    classes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Pixels of the side of its images."""
        assert self.processor.size is not None, "read_model has refused it"
        return self.processor.size[0]

    @property
    def image(self) -> jax.ShapeDtypeStruct:
        """The shape of a batch of one image."""
        return jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)

    @property
    def width(self) -> int:
        """How many logits it has."""
        return self.outputs().logits.shape[-1]

    def outputs(self, taps: tuple[str, ...] = ()) -> Any:
        """Return the shapes of its outputs.

        Raises:
            ValueError: it cannot take images of its size.
        """
        try:
            variables = self.variables or jax.eval_shape(
                self.network.init, jax.random.key(0)
            )
            found = jax.eval_shape(
                lambda v, x: self.network.apply(v, x, taps=taps)[0],
                variables,
                self.image,
            )
            if any(0 in x.shape for x in found.features.values()):
                raise ValueError("nothing is left of them after some layers")
            return found
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.name} cannot take images of {self.size} x {self.size} pixels "
                f"({error}): give another --size, or another model"
            ) from None

    def sees(self, size: int) -> data.Transform:
        """Return the transform of square uint8 pictures that are cut out already."""
        own = self.processor
        plain = own.size == (size, size) and own.scale == 1 / 255 and own.std
        if plain and own.mean is not None and own.std is not None:
            return data.Normalize(own.mean, own.std)
        return own.of_crops()


@checked()
def is_folder(name: str | Path) -> bool:
    """Return whether a model is said by its folder, not by its name."""
    return isinstance(name, Path) or "/" in name or Path(name).is_dir()


@checked()
def processor_of(size: int, like: data.ImageProcessor | None) -> data.ImageProcessor:
    """Return the processor of a network that has none.

    Photographs lose an eighth around their centre, as ImageNet's custom is; small
    images are taken whole.

    Args:
        size: of its images.
        like: another's, whose means and deviations it gets, or all of it if it has
            that size.
    """
    if like is not None and like.size == (size, size):
        return like
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if like is not None and like.mean is not None:
        mean, std = like.mean, like.std
    cuts = size >= SMALL
    return data.ImageProcessor(
        resize=size * 256 // 224 if cuts else (size, size),
        crop=(size, size) if cuts else None,
        resample=2,
        scale=1 / 255,
        mean=mean,
        std=std,
    )


@checked()
def read_model(folder: str | Path, *, mesh: Any, dtype: str, size: int | None) -> Model:
    """Return the classifier of a folder, Hugging Face's or this library's.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: it is damaged, or no classifier of images.
    """
    network, variables = load_pretrained(folder, mesh=mesh, dtype=dtype)
    if network.reads != ("image",):
        raise ValueError(f"{folder} holds no classifier of images: name one that is")
    config = network.origin.config
    try:
        processor = data.load_image_processor(folder)
    except FileNotFoundError:
        given = config.get("input_shape") or [network.origin.given.get("image_size")]
        side = given[0] or size
        if not isinstance(side, int):
            raise ValueError(
                f"{folder} says nowhere how large its images are: give --size"
            ) from None
        processor = processor_of(side, None)
    if processor.size is None or processor.size[0] != processor.size[1]:
        raise ValueError(
            f"{folder} takes images of {processor.size} pixels, not of one square size"
        )
    names = config.get("id2label") or {}
    found = tuple(names.get(str(i), "") for i in range(len(names)))
    if not all(isinstance(name, str) for name in found):
        raise ValueError(f"{folder}: id2label of config.json holds what is no name")
    if not all(found) or re.fullmatch(r"(LABEL_\d+,?)*", ",".join(found)):
        found = ()  # Those that transformers gives classes without names.
    return Model(str(folder), network, variables, processor, found)


@checked()
def usual_size(name: str, side: int) -> int:
    """Return the size of a network by name on data of some size.

    Args:
        name: as in `build_model`.
        side: of the data's images.
    """
    if side < SMALL:
        return max(side, 32)
    plain = name.lower().replace("-", "_")
    return 32 if _zoo(224).get(plain, (name,))[0] in CIFAR else 224


@checked()
def build_model(
    name: str,
    classes: int,
    size: int,
    options: Mapping[str, Option],
    like: data.ImageProcessor | None,
) -> Model:
    """Return a network of the zoo, by the field's name for it or the zoo's own.

    Args:
        name: such as ``resnet18``.
        classes: of the data.
        size: pixels of its images.
        options: further arguments of its constructor.
        like: the teacher's processor, whose numbers it takes over.

    Raises:
        ValueError: no such network, or arguments that it does not take.
    """
    zoo = _zoo(size)
    plain = name.lower().replace("-", "_")
    if plain not in zoo and name not in models.MODELS:
        raise ValueError(unknown_name("model", name, zoo))
    constructor, arguments = zoo.get(plain, (name, {}))
    try:
        taken = inspect.signature(inspect.unwrap(models.MODELS[constructor])).parameters
        if "channels_in" in taken:
            arguments = {"channels_in": 3, **arguments}
        network = models.create(
            constructor, **{**arguments, "classes": classes, **options}
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"model {name} of {size} pixels: {error}") from None
    return Model(name, network, None, processor_of(size, like))


@checked()
def with_classes(model: Model, classes: int, seed: int) -> Model:
    """Return a model with a new last layer, if it is of another number of classes.

    Raises:
        ValueError: more than its last layer depends on them.
    """
    if model.width == classes:
        return model
    assert model.network.spec is not None, "it is of the zoo"
    assert model.variables is not None, "it is of a folder"
    constructor, arguments = model.network.spec
    network = models.create(constructor, **{**arguments, "classes": classes})
    fresh = network.init(jax.random.key(seed))
    kept = jax.tree.map(
        lambda a, b: b if a.shape == b.shape else a, fresh, model.variables
    )
    network = dataclasses.replace(network, origin=model.network.origin)
    return dataclasses.replace(model, network=network, variables=kept, classes=())
