"""What many tests share: small calls of the contracts."""

from jaxkd.methods.base import resolved


def call(method, variables, student, teacher, batch, key=None, step=0):
    """Return a method's ``(scalar loss, (state, scalar metrics))``."""
    return resolved(method.loss(variables, student, teacher, batch, key, step))
