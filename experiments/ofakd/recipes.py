"""What a recipe means: its data, transforms and optimizer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.classification import shrunk
from experiments.common.training import Task
from experiments.ofakd.config import Config, Recipe, Setting
from jaxkd import data
from jaxkd.checks import unknown_name
from jaxkd.data.datasets import CIFAR100_MEAN, CIFAR100_STD


@dataclass(frozen=True)
class EitherOf:
    """One of two transforms for a whole batch, each as often."""

    first: data.Transform
    second: data.Transform

    def __call__(self, batch: dict[str, Any], rng: np.random.Generator | None):
        """Return the batch as the transform that was drawn leaves it."""
        if rng is None:
            return batch
        return (self.first if rng.random() < 0.5 else self.second)(batch, rng)


def load_dataset(setting: Setting) -> data.Dataset:
    """Return the data set with its images in the setting's size."""
    if setting.dataset == "tfds/cifar100":

        def resized(record, rng):
            image = data.CropResize(setting.side)(record["image"], rng)
            return {"image": image, "label": np.int32(record["label"])}

        return data.tfds_dataset(
            "cifar100", decode=resized, mean=CIFAR100_MEAN, std=CIFAR100_STD
        )
    dataset = data.load(setting.dataset)
    train, test = dataset.train, dataset.test
    if setting.test_examples:
        test = test.subset(setting.test_examples)
    if setting.side:
        by = train.take(np.arange(1))["image"].shape[1] // setting.side
        train, test = shrunk(train, by), shrunk(test, by)
    return replace(dataset, train=train, test=test)


def make_task(config: Config, name: str, dataset: data.Dataset, recipe: Recipe) -> Task:
    """Return the training on all examples of a data set by a recipe."""
    scale = (data.Normalize(dataset.mean, dataset.std),) if dataset.mean else ()
    classes = dataset.train.classes
    mixing = tuple(
        kind(alpha, classes)
        for kind, alpha in ((data.Mixup, recipe.mixup), (data.CutMix, recipe.cutmix))
        if alpha
    )
    steps = (
        *((data.PadCrop(recipe.shift),) if recipe.shift else ()),
        *((data.Flip(),) if recipe.flip else ()),
        *scale,
        *((EitherOf(*mixing),) if len(mixing) == 2 else mixing),
    )
    epochs = config.epochs or recipe.epochs
    return Task(
        setting=name,
        train=dataset.train,
        test=dataset.test,
        epochs=epochs,
        batch_size=recipe.batch_size,
        optimizer=make_optimizer(recipe, epochs),
        transform=data.Compose(steps),
        test_transform=scale[0] if scale else None,
        evaluate_every=min(recipe.evaluate_every, epochs),
    )


def make_optimizer(
    recipe: Recipe, epochs: int
) -> Callable[[int], optax.GradientTransformation]:
    """Return ``steps ->`` the recipe's optimizer for a run of so many epochs."""

    def matrices(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    def build(steps: int) -> optax.GradientTransformation:
        of_epoch = steps // epochs
        warmup = recipe.warmup_epochs * of_epoch
        if recipe.milestones:
            drops = {m * of_epoch: 0.1 for m in recipe.milestones}
            decay = optax.piecewise_constant_schedule(recipe.learning_rate, drops)
        else:
            share = recipe.final_rate / recipe.learning_rate
            decay = optax.cosine_decay_schedule(recipe.learning_rate, steps, share)
        rise = optax.linear_schedule(
            recipe.warmup_rate, recipe.learning_rate, max(warmup, 1)
        )

        def rate(step):
            # The decay counts from the first step on, under the warm-up too.
            return jnp.where(step < warmup, rise(step), decay(step))

        clip = (
            optax.clip_by_global_norm(recipe.clip) if recipe.clip else optax.identity()
        )
        if recipe.optimizer == "adamw":
            decayed = optax.adamw(rate, weight_decay=recipe.weight_decay, mask=matrices)
            return optax.chain(clip, decayed)
        if recipe.optimizer != "sgd":
            raise ValueError(
                unknown_name("optimizer", recipe.optimizer, ["adamw", "sgd"])
            )
        return optax.chain(
            clip,
            optax.add_decayed_weights(recipe.weight_decay, matrices),
            optax.sgd(rate, momentum=0.9, nesterov=True),
        )

    return build
