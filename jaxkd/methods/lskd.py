"""Logit standardisation, a layer in front of any method on logits."""

from dataclasses import replace

from jaxkd.arguments import checked
from jaxkd.losses.divergences import standardize_logits
from jaxkd.methods.masks import masked
from jaxkd.types import Method, Outputs


@checked()
def lskd(method: Method) -> Method:
    """Return the method on standardised logits of both networks.

    Sun et al. 2024, arXiv:2403.01427: ``lskd(kd(temperature=2.0))`` with weight 9
    beside cross-entropy 0.1, which keeps the raw logits; or ``lskd(dkd(...))``,
    ``lskd(ctkd(...))``.

    Args:
        method: reads logits; its taps are passed through.
    """

    def standardized(outputs: Outputs) -> Outputs:
        if outputs.logits is None:
            return outputs
        return replace(outputs, logits=standardize_logits(outputs.logits))

    def init(key, student, teacher, batch):
        return method.init(key, standardized(student), standardized(teacher), batch)

    def loss(variables, student, teacher, batch, key, step):
        value, (state, metrics) = method.loss(
            variables, standardized(student), standardized(teacher), batch, key, step
        )
        return value, (state, {f"ls_{name}": m for name, m in metrics.items()})

    return masked(method._replace(init=init, loss=loss))
