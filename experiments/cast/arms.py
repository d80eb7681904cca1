"""The methods that are compared: the network each trains, and how."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import optax

from experiments.cast.config import SCOPE, Config, decayed, trained_for
from jaxkd import distill
from jaxkd.checks import unknown_name
from jaxkd.compression.prune.sparsity import nm_masks, prune
from jaxkd.compression.sparse_training import scaled, straight_through
from jaxkd.methods import combine, cross_entropy, kd
from jaxkd.network import Network
from jaxkd.papers.cast.optimizers import adams, ast_adam, keep_zeros
from jaxkd.types import Program, Variables


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        student: the network in training.
        program: what trains it; None for a network that is only pruned.
        steps: of its training.
    """

    student: Network
    program: Program | None
    steps: int = 0


def arms(
    config: Config,
    network: Network,
    start: Callable[[Network], Network],
    pruned: Callable[[Network], Network],
    teacher: Network,
) -> dict[str, Callable[[], Arm]]:
    """Return what makes each method, by name.

    Args:
        config: the experiment's.
        network: the language model.
        start: gives a network the dense model's weights.
        pruned: gives it those weights, pruned by their magnitudes.
        teacher: the dense model, frozen.
    """
    rate, ramp = config.rate(), config.share()
    dense = start(network)

    def learn(
        student: Network,
        optimizer: optax.GradientTransformation,
        eta: float = config.eta,
    ) -> Arm:
        objective = combine((1 - eta, cross_entropy()), (eta, kd(1.0)))
        if config.clip:
            optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
        program = distill(student, teacher, objective, optimizer)
        return Arm(student, program, config.steps)

    def cast(
        decay: float = config.decay,
        share: optax.Schedule = ramp,
        scales: bool = True,
        eta: float = config.eta,
    ) -> Arm:
        student = scaled(dense, SCOPE, config.groups) if scales else dense
        optimizer = adams(rate, decay, share, SCOPE, mask_every=config.mask_every)
        return learn(student, optimizer, eta)

    ast_decay = optax.linear_schedule(0.0, config.ast_decay, config.steps // 4)
    return {
        "one_shot": lambda: Arm(dense, None),
        "fixed_mask": lambda: learn(
            pruned(network), optax.chain(optax.adam(rate), keep_zeros(SCOPE))
        ),
        "sr_ste": lambda: learn(
            straight_through(dense, SCOPE, config.sr_ste_decay), optax.adam(rate)
        ),
        "ast": lambda: learn(
            straight_through(dense, SCOPE, mask_every=config.mask_every),
            ast_adam(rate, ast_decay, SCOPE, mask_every=config.mask_every),
        ),
        "cast": cast,
        "cast_no_scales": lambda: cast(scales=False),
        "cast_no_kd": lambda: cast(eta=0.0),
        # The ramp's mean from the first step on.
        "cast_no_ramp": lambda: cast(share=optax.constant_schedule(0.5)),
        "dense": lambda: learn(dense, optax.adam(rate)),
        **{
            decayed(decay): lambda decay=decay: cast(decay=decay)
            for decay in config.decays
        },
        **{
            trained_for(steps): arms(
                replace(config, steps=steps, budgets=()),
                network,
                start,
                pruned,
                teacher,
            )["cast"]
            for steps in config.budgets
        },
    }


def make_arms(config: Config, network: Network, variables: Variables) -> dict[str, Arm]:
    """Return the configuration's methods for a trained dense model.

    Args:
        config: the experiment's.
        network: the language model.
        variables: the dense model's.

    Raises:
        ValueError: an unknown method.
    """
    params = variables["params"]
    magnitude = {**variables, "params": prune(params, nm_masks(params, SCOPE))}
    makers = arms(
        config,
        network,
        lambda network: network.with_variables(variables),
        lambda network: network.with_variables(magnitude),
        network.with_variables(variables),
    )
    for name in config.rows:
        if name not in makers:
            raise ValueError(unknown_name("method", name, makers))
    return {name: makers[name]() for name in config.rows}
