"""What language models answer to prompts that were held out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxkd import data
from jaxkd.arguments import checked
from jaxkd.evaluation.texts import rouge_l
from jaxkd.generation import GREEDY, generate
from jaxkd.network import Network
from jaxkd.types import Variables, deployed


@checked()
@dataclass(frozen=True)
class Asked:
    """Prompts, and what the data answer to them.

    Attributes:
        prompts: of them, the first are asked.
        number: how many.
        tokenizer: of the models.
        ends: tokens that end an answer.
    """

    prompts: data.Prompts
    number: int
    tokenizer: data.Tokenizer
    ends: tuple[int, ...]

    @property
    def asked(self) -> list[str]:
        """The prompts as texts."""
        rows = map(self.prompts.documents.__getitem__, self._positions)
        return [self.tokenizer.decode(row.tolist()) for row in rows]

    @property
    def references(self) -> list[str]:
        """The data's answers."""
        responses = self.prompts.responses
        assert responses is not None, "conversations have answers"
        rows = map(responses.__getitem__, self._positions)
        return [self.tokenizer.decode(row.tolist()) for row in rows]

    def answers(self, network: Network) -> Callable[[Variables], list[str]]:
        """Return ``variables ->`` a network's most likely answers."""
        batch = self.prompts.take(np.array(self._positions))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

        def answer(variables: Variables) -> list[str]:
            found = generate(
                network,
                variables,
                inputs,
                max_new_tokens=self.prompts.response_length,
                sampling=GREEDY,
                eos=self.ends,
                pad=self.tokenizer.pad or 0,
                vocabulary=self.tokenizer.vocabulary,
            )
            rows = zip(np.asarray(found.tokens), np.asarray(found.mask), strict=True)
            return [self.tokenizer.decode(row[real].tolist()) for row, real in rows]

        return answer

    def evaluator(self, network: Network) -> Callable[[Any], dict[str, float]]:
        """Return ``variables -> metrics``: ``rouge_l`` of a network's answers."""
        answers = self.answers(network)
        return lambda state: {"rouge_l": self.score(answers(deployed(state)))}

    def shown(
        self, networks: Mapping[str, tuple[Network, Variables]], number: int = 4
    ) -> list[dict[str, str]]:
        """Return prompts with the data's answers and those of networks, by name."""
        columns = {"prompt": self.asked, "data": self.references}
        for name, (network, variables) in networks.items():
            columns[name] = self.answers(network)(variables)
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows][:number]

    def score(self, answers: Sequence[str]) -> float:
        """Return the mean ROUGE-L of answers to the prompts."""
        pairs = zip(answers, self.references, strict=True)
        return float(np.mean([rouge_l(found, wanted) for found, wanted in pairs]))

    @property
    def _positions(self) -> range:
        return range(min(self.number, len(self.prompts)))
