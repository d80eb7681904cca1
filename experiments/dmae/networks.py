"""The networks of each phase: masked autoencoders, their teachers, and classifiers."""

from dataclasses import dataclass, replace

from jaxkd import models
from jaxkd.network import Network
from jaxkd.networks.freezing import all_weights
from jaxkd.papers.dmae import (
    fixed_positions,
    masked_autoencoder,
    mean_pooled,
    visible,
)
from jaxkd.types import Variables


@dataclass(frozen=True)
class Sizes:
    """A vision transformer and the decoder that it is pre-trained with.

    Attributes:
        size: width, blocks and heads of the encoder.
        decoder: the same of the decoder.
        image: pixels of the image's side.
        patch: pixels of a patch's side.
        channels: of the image.
        classes: of the labels.
        drop_path: of the last block in fine-tuning.
    """

    size: tuple[int, int, int]
    decoder: tuple[int, int, int]
    image: int = 224
    patch: int = 16
    channels: int = 3
    classes: int = 1000
    drop_path: float = 0.0

    @property
    def side(self) -> int:
        """Patches in a row."""
        return self.image // self.patch

    def plain(self, drop_path: float = 0.0) -> Network:
        """Return the encoder as it is."""
        return models.vit(
            self.size,
            self.classes,
            image_size=self.image,
            patch_size=self.patch,
            channels_in=self.channels,
            drop_path=drop_path,
        )

    def autoencoder(self) -> Network:
        """Return the network that is pre-trained."""
        encoder = fixed_positions(self.plain(), self.side).segment(None, "final")
        values = self.patch**2 * self.channels
        return masked_autoencoder(
            visible(encoder), self.size[0], self.side, values, self.decoder
        )

    def first_blocks(self, stop: str, variables: Variables) -> Network:
        """Return a teacher that sees the visible patches and runs up to a block."""
        return visible(self.plain().segment(None, stop)).with_variables(variables)

    def classifier(self, variables: Variables | None = None) -> Network:
        """Return the network that is fine-tuned.

        Args:
            variables: of the pre-trained encoder; None to start from new ones.
        """
        vit = self.plain(self.drop_path)
        if variables is None:
            fixed = fixed_positions(vit, self.side)
            vit = replace(vit, init=lambda key: all_weights(fixed.init(key)))
        else:
            vit = vit.with_variables(variables)
        return mean_pooled(vit, f"block{self.size[1] - 1}")
