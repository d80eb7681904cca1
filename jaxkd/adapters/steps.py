"""The named steps of a forward pass: taps, edits and segments come from one place."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxtyping import Array

from jaxkd.types import Outputs, Segment

Edits = Mapping[str, Callable[[Array], Array]]
"""What takes an activation's place, by the activation's tap: ``fn(activation)``."""

Tap = Callable[[Array], Array]
"""Takes note of an activation inside a block; returns it as edited."""


def unchanged(x: Array) -> Array:
    """Return the activation: the step to a second name of it, a tap of nobody."""
    return x


NO_EDITS: Edits = MappingProxyType({})

WHOLE: Segment = (None, None)


def segment_name(segment: Segment) -> str:
    """Return the name of a segment in `Outputs.segments`."""
    return ":".join(end or "" for end in segment)


class Steps:
    """One forward pass of a model whose activations have names.

    The model's ``__call__`` has a parameter ``steps``, and says with it what comes
    after what. Nothing more is needed to tap, edit and cut the model::

        def __call__(self, image, *, steps=None):
            steps = steps or Steps()
            x = steps("stem", self.stem, image)
            x = steps("block0", self.blocks[0], x)
            return steps.outputs(self.head, x)

    A step computes nothing where it lies outside of the segment that is wanted: before
    it, the value is the activation that the segment was given, after it the last one's.

    Args:
        taps: activations to keep.
        edits: what to put in their place, by tap.
        segment: the taps to start after and to stop at; None for input and logits.
        given: the activation to start from, if ``segment`` has a start.
    """

    def __init__(
        self,
        taps: tuple[str, ...] = (),
        edits: Edits = NO_EDITS,
        segment: Segment = WHOLE,
        given: Array | None = None,
    ):
        self.taps, self.edits = taps, edits
        self.start, self.stop = segment
        self.running = self.start is None
        self.value: Any = given
        self.features: dict[str, Any] = {}
        self.edited: set[str] = set()

    def __call__(
        self, name: str | None, compute: Callable[..., Array], *args: Any
    ) -> Array:
        """Take a step: return ``compute(*args)``, as edited, or what stands for it.

        Args:
            name: of the activation that it ends in, which the network can be cut at;
                None for a step to nothing that has a name.
            compute: it calls the layers before the activation.
            *args: of ``compute``, such as the activation before.
        """
        if self.running:
            value = compute(*args)
            self.value = value if name is None else self.tap(name, value)
        if name is not None and name in (self.start, self.stop):
            self.running = name == self.start
        return self.value

    def row(self, names: Sequence[str], run: Callable[[range], Array]) -> Array:
        """Take several steps at once, such as those of one compiled loop.

        Args:
            names: of the activations that they end in.
            run: ``numbers of the steps to take -> the last one's activation``. It sees
                to taps and edits itself.
        """
        first = 0
        if not self.running:
            if self.start not in names:
                return self.value
            first, self.running = names.index(self.start) + 1, True
        last = names.index(self.stop) + 1 if self.stop in names else len(names)
        if first < last:
            self.value = run(range(first, last))
        self.running = self.stop not in names
        return self.value

    def tap(self, name: str, value: Any) -> Any:
        """Return an activation that lies beside the line of steps, as edited."""
        if name in self.edits:
            value = self.edits[name](value)
            self.edited.add(name)
        if name in self.taps:
            self.features[name] = value
        return value

    def outputs(self, compute: Callable[..., Any], *args: Any) -> Outputs:
        """Return logits ``compute(*args)``, or the activation that the pass stops at.

        Raises:
            ValueError: a tap or an edit that no step of this pass has come to.
        """
        logits = compute(*args) if self.running else self.value
        passed = {*self.features, *self.edited}
        if lost := [name for name in (*self.taps, *self.edits) if name not in passed]:
            raise ValueError(
                f"{lost[0]!r} was not reached between "
                f"{self.start or 'the input'!r} and {self.stop or 'the logits'!r}"
            )
        return Outputs(logits, {tap: self.features[tap] for tap in self.taps})
