"""What many tests share: small calls of the contracts, and a small tokenizer."""

from jaxkd.methods.base import resolved


def call(method, variables, student, teacher, batch, key=None, step=0):
    """Return a method's ``(scalar loss, (state, scalar metrics))``."""
    return resolved(method.loss(variables, student, teacher, batch, key, step))


class Pairs:
    """A tokenizer of two letters at a time, where there are two."""

    vocabulary, bos, eos, pad, around = 9, None, 8, None, ([], [])
    pieces = (b"a", b"b", b"aa", b"ab", b"ba", b"bb", b"?", b"", b"</s>")

    def encode(self, text):
        cut = (text[i : i + 2].encode() for i in range(0, len(text), 2))
        return [self.pieces.index(x) if x in self.pieces else 6 for x in cut]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, tokens):
        return b"".join(self.pieces[token] for token in tokens).decode()

    def classifier_tokens(self, text, second, length):
        raise NotImplementedError
