"""Several teachers in one network, each with inputs and classes of its own."""

from collections.abc import Sequence
from dataclasses import replace

from jaxkd.adapters import NO_EDITS
from jaxkd.arguments import checked
from jaxkd.network import Network
from jaxkd.networks.ensemble import ensemble, member
from jaxkd.types import Outputs


@checked()
def side_by_side(networks: Sequence[Network]) -> Network:
    """Return one network that runs all of them, each on inputs of its own.

    It is a teacher for `jaxkd.methods.several_teachers`. Member i reads the keys that
    it reads alone with ``i_`` before, so that as a teacher it takes
    ``teacher_0_input_ids`` and the like of a batch, as `jaxkd.data.several_tokenizers`
    makes them. Its taps are ``0.logits``, ``1.logits``, …; the logits are the first
    member's. Variables are those of an `ensemble`.

    Args:
        networks: the members.

    Raises:
        ValueError: no networks.
    """
    together = ensemble(networks)
    taps = tuple(f"{i}.logits" for i in range(len(networks)))
    reads = tuple(f"{i}_{name}" for i, n in enumerate(networks) for name in n.reads)

    def apply(variables, inputs, *, taps=(), edits=NO_EDITS, train=False, key=None):
        if edits or train:
            raise ValueError("side_by_side() is for teachers that stand still")
        batch = {reads[0]: inputs} if len(reads) == 1 else inputs
        logits = [
            network.apply(member(variables, i), network.read(batch, str(i)))[0].logits
            for i, network in enumerate(networks)
        ]
        named = {f"{i}.logits": each for i, each in enumerate(logits)}
        return Outputs(logits[0], {tap: named[tap] for tap in taps}), variables

    return replace(together, apply=apply, taps=taps, reads=reads)
