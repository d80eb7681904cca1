"""Classes as texts: what makes a vision-language model a classifier without labels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.arguments import checked, count
from jaxkd.data.text.tokenizers import Tokenizer, tokens_around
from jaxkd.network import Network
from jaxkd.types import Inputs, Variables


@checked(length=count, batch_size=count)
def class_prototypes(
    network: Network,
    variables: Variables,
    tokenizer: Tokenizer,
    names: Sequence[str],
    templates: Sequence[str] = ("a photo of a {}.",),
    *,
    length: int = 77,
    batch_size: int = 256,
) -> Float[np.ndarray, "features classes"]:
    """Return one prototype a class: the direction of its texts' mean embedding.

    Radford et al. 2021, arXiv:2103.00020, Section 3.1.4: a class's embeddings, each of
    length 1, are averaged over templates, and the mean is brought to length 1.
    `losses.cosine_logits` of image embeddings with these are the zero-shot logits.

    Args:
        network: `models.clip` or `models.siglip`, such as `interop.load_pretrained`
            returns it, or another with the tap ``text_embeds`` that reads
            ``input_ids``.
        variables: of the network.
        tokenizer: the model's, such as `data.load_tokenizer` returns it.
        names: of the classes, in the order of their labels.
        templates: texts in which ``{}`` stands for a name.
        length: of a text at most, in tokens; the end of a longer name is left out.
        batch_size: texts in one forward pass.

    Raises:
        ValueError: no names or templates, a template without ``{}``, or a class whose
            mean embedding has no direction.
    """
    if not names or not templates:
        raise ValueError(
            f"names has {len(names)} classes and templates {len(templates)} texts: "
            "give at least one of each"
        )
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"templates has {template!r:.80}, which is the same for all classes: "
                "put {} where the name goes"
            )
    texts = [template.replace("{}", name) for name in names for template in templates]
    ids, mask = _padded(tokenizer, texts, length)
    size = min(batch_size, len(texts))

    @jax.jit
    def embed(variables: Variables, inputs: Inputs) -> Array:
        outputs, _ = network.apply(variables, inputs, taps=("text_embeds",))
        return outputs.features["text_embeds"].astype(jnp.float32)

    found = []
    for start in range(0, len(texts), size):
        # The last batch begins again with the first texts, to be of the same shape.
        rows = np.arange(start, start + size) % len(texts)
        inputs = {"input_ids": ids[rows], "attention_mask": mask[rows]}
        found.append(np.asarray(embed(variables, inputs)))
    embeddings = np.concatenate(found)[: len(texts)]
    means = embeddings.reshape(len(names), len(templates), -1).mean(1)
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    for name, found_length in zip(names, lengths, strict=True):
        if not found_length > 0:
            raise ValueError(
                f"names has {name!r}, the mean embedding of whose texts has the length "
                f"{found_length[0]} and no direction: check the weights, or take other "
                "templates"
            )
    return (means / lengths).T


def _padded(
    tokenizer: Tokenizer, texts: list[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens between those that begin and end a text, and which are real."""
    before, after = tokens_around(tokenizer)
    room = length - len(before) - len(after)
    rows = [[*before, *row[:room], *after] for row in tokenizer.encode_batch(texts)]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask
