"""Federated distillation: clients that share predictions, not weights, as one program.

A step is a whole round: every client trains on its labels, predicts the round's proxy
samples, and learns the average of what the clients share. EdgeFD is the round in which
each shares only what its filter lets pass; with all masks set it is FedMD.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from jaxkd.arguments import checked, positive
from jaxkd.checks import check_batch
from jaxkd.losses import cross_entropy_loss, fd_distill_loss, masked_ensemble
from jaxkd.losses.basics import as_float, weighted_loss
from jaxkd.methods.base import masked_loss
from jaxkd.methods.masks import finite_outputs
from jaxkd.network import Network
from jaxkd.programs.update import Keys, Player, descend
from jaxkd.types import Batch, Inputs, Loss, Metrics, Outputs, Program

Aggregate = Callable[
    [Float[Array, "clients samples classes"], Bool[Array, "clients samples"]],
    tuple[Float[Array, "samples classes"], Bool[Array, "samples"]],
]
"""What the server does: predictions and masks to targets and whether they are valid."""


@flax.struct.dataclass
class ClientState:
    """What a client keeps between rounds.

    Attributes:
        variables: its network's.
        opt_state: its optimizer's.
    """

    variables: Any
    opt_state: Any


@flax.struct.dataclass
class FederatedState:
    """The state of `federated_distillation`; the server has none of its own.

    Attributes:
        step: rounds done, an int32 scalar.
        key: the key all later randomness comes from.
        clients: a `ClientState` with the clients on the first axis, or a tuple of one
            each where their networks differ.
    """

    step: Any
    key: Any
    clients: Any


class Client(NamedTuple):
    """One client as pure functions, run under ``vmap`` or in a process of its own.

    Attributes:
        init: ``key -> ClientState``.
        learn: ``(state, private batch, key) -> (state, loss)``, from labels.
        predict: ``(state, inputs) ->`` class probabilities (samples, classes).
        distill: ``(state, inputs, targets, valid, key) -> (state, loss)``.
        read: ``batch ->`` the inputs in it.
    """

    init: Callable[[PRNGKeyArray], ClientState]
    learn: Callable[[ClientState, Batch, PRNGKeyArray], tuple[ClientState, Array]]
    predict: Callable[[ClientState, Inputs], Array]
    distill: Callable[..., tuple[ClientState, Array]]
    read: Callable[[Batch], Inputs]


@checked(temperature=positive)
def fd_client(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    local_steps: int,
    distill_steps: int,
    distill_batch_size: int,
    temperature: float = 1.0,
) -> Client:
    """Return a client that trains one network with one optimizer on both losses.

    Args:
        network: the client's own.
        optimizer: any optax transformation.
        local_steps: of cross-entropy in a round, over equal parts of its private batch.
        distill_steps: of distillation in a round.
        distill_batch_size: proxies in each, drawn without repetition until all were.
        temperature: of shared probabilities and of distillation.

    Raises:
        ValueError: a number of steps or a batch size below 1.
    """
    for name, value in (
        ("local_steps", local_steps),
        ("distill_steps", distill_steps),
        ("distill_batch_size", distill_batch_size),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

    player = Player(("network",), optimizer)

    def init(key: PRNGKeyArray) -> ClientState:
        variables = network.init(key)
        return ClientState(variables, player.init({"network": variables["params"]}))

    def move(
        state: ClientState, inputs: Inputs, key: PRNGKeyArray, loss: Callable
    ) -> tuple[ClientState, Array]:
        def objective(params: PyTree, stats: PyTree, batch: Batch, keys: Keys, step):
            variables = {"params": params["network"], "stats": stats}
            outputs, variables = network.apply(
                variables, batch["inputs"], train=True, key=keys.student
            )
            return loss(outputs.logits), (variables["stats"], {})

        found = descend(
            player,
            state.opt_state,
            objective,
            {"network": state.variables["params"]},
            state.variables["stats"],
            {"inputs": inputs},
            Keys(key),
            0,
        )
        variables = {
            **state.variables,
            "params": found.params["network"],
            "stats": found.carry,
        }
        return ClientState(variables, found.opt_state), found.metrics["loss"]

    def learn(
        state: ClientState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[ClientState, Array]:
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % local_steps:
            raise ValueError(
                f"a client's private batch has {size} examples, which {local_steps} "
                "local_steps cannot share evenly: use a multiple"
            )
        parts = jax.tree.map(
            lambda x: x.reshape(local_steps, -1, *x.shape[1:]), dict(batch)
        )

        def step(state: ClientState, drawn: Any) -> tuple[ClientState, Array]:
            part, key = drawn

            def loss(logits: Array) -> Loss:
                logits = finite_outputs(Outputs(logits), part).logits
                return masked_loss(cross_entropy_loss(logits, part["label"]), part)

            return move(state, network.read(part), key, loss)

        keys = jax.random.split(key, local_steps)
        state, losses = jax.lax.scan(step, state, (parts, keys))
        return state, losses.mean()

    def predict(state: ClientState, inputs: Inputs) -> Array:
        logits = network.apply(state.variables, inputs)[0].logits
        return jax.nn.softmax(as_float(logits) / temperature)

    def distill(
        state: ClientState,
        inputs: Inputs,
        targets: Array,
        valid: Array,
        key: PRNGKeyArray,
    ) -> tuple[ClientState, Array]:
        drawn = distill_steps * distill_batch_size
        order, noise = jax.random.split(key)
        passes = jax.random.split(order, -(-drawn // len(targets)))
        positions = jax.vmap(lambda k: jax.random.permutation(k, len(targets)))(passes)
        positions = positions.ravel()[:drawn].reshape(distill_steps, -1)

        def step(state: ClientState, drawn: Any) -> tuple[ClientState, Array]:
            rows, key = drawn

            def loss(logits: Array) -> Loss:
                losses = fd_distill_loss(
                    logits, targets[rows], valid[rows], temperature
                )
                return weighted_loss(losses, valid[rows])

            part = jax.tree.map(lambda x: x[rows], inputs)
            return move(state, part, key, loss)

        keys = jax.random.split(noise, distill_steps)
        state, losses = jax.lax.scan(step, state, (positions, keys))
        return state, losses.mean()

    return Client(init, learn, predict, distill, network.read)


def init_key(key: PRNGKeyArray, client: Any) -> PRNGKeyArray:
    """Return the key of a client's weights, from the run's."""
    return Keys(key).at(client).weights


def round_keys(
    key: PRNGKeyArray, round_number: Any, client: Any
) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Return a client's keys of learning and of distilling in a round, from the run's.

    They depend on nothing else, so a client in its own process draws the same.
    """
    keys = Keys(key).at(client).at(round_number)
    return keys.learning, keys.distilling


@checked()
def federated_distillation(
    clients: Client | Sequence[Client], aggregate: Aggregate | None = masked_ensemble
) -> Program:
    """Return the program whose step is one round of federated distillation.

    Mujtaba et al. 2025, arXiv:2508.14769. A batch holds a round (see
    `jaxkd.federated.Rounds`): ``private`` examples of each client, ``proxy`` samples,
    which go to all, and ``mask``, which of them each client speaks about.

    Args:
        clients: one, for as many of equal networks as the batch has, run under
            ``vmap``; or a sequence of one each, whose networks may differ.
        aggregate: of the server. The mean over contributors by default; compose it with
            `era_sharpen` for DS-FL, or with `ambiguity_filter` for Selective-FD. None
            for clients that share nothing.

    Returns:
        A program whose state is a `FederatedState`. Its metrics are ``loss`` (of the
        labels, mean over clients), ``distill_loss``, ``shared`` (the share of
        predictions sent), ``valid`` (of proxies with a target) and ``upload_bytes`` of
        a round: 4 for each probability and each sample's index.

    Raises:
        ValueError: from ``init``, a batch that is empty, not finite or not a round; or
            another number of clients than the sequence has.
    """
    same = isinstance(clients, Client)

    def count(batch: Batch) -> int:
        missing = [name for name in ("private", "proxy", "mask") if name not in batch]
        if missing:
            raise ValueError(
                f"the batch has {sorted(batch)}, not {missing}: a round is made by "
                "jaxkd.federated.Rounds and data.batches(rounds, clients, …)"
            )
        number = batch["mask"].shape[0]
        if batch["mask"].shape[-1] != number or not (same or len(clients) == number):
            raise ValueError(
                f"batch['mask'] has shape {batch['mask'].shape} for "
                f"{number if same else len(clients)} clients: it must be (clients, "
                "proxies of each, clients); use the number of clients as batch size"
            )
        return number

    def each(call: Callable, states: Any, *stacked: Any) -> tuple[Any, Array]:
        """Return new states and values of ``call(client, state, *its rows)``."""
        if isinstance(clients, Client):
            return jax.vmap(lambda *mine: call(clients, *mine))(states, *stacked)
        results = [
            call(client, states[i], *jax.tree.map(lambda x, i=i: x[i], stacked))
            for i, client in enumerate(clients)
        ]
        changed, values = zip(*results, strict=True)
        return tuple(changed), jnp.stack(values)

    def init(key: PRNGKeyArray, batch: Batch) -> FederatedState:
        check_batch(batch)
        numbers = jnp.arange(count(batch))
        keys = jax.vmap(lambda i: init_key(key, i))(numbers)
        if isinstance(clients, Client):
            states = jax.vmap(clients.init)(keys)
        else:
            states = tuple(c.init(k) for c, k in zip(clients, keys, strict=True))
        return FederatedState(jnp.zeros((), jnp.int32), key, states)

    def step(state: FederatedState, batch: Batch) -> tuple[FederatedState, Metrics]:
        numbers = jnp.arange(count(batch))
        learning, distilling = jax.vmap(lambda i: round_keys(state.key, state.step, i))(
            numbers
        )
        states, losses = each(
            lambda client, *mine: client.learn(*mine),
            state.clients,
            batch["private"],
            learning,
        )
        metrics: Metrics = {"loss": losses.mean()}
        if aggregate is not None:
            proxy, masks = jax.tree.map(
                lambda x: x.reshape(-1, *x.shape[2:]), (batch["proxy"], batch["mask"])
            )
            masks = masks.T
            _, predictions = each(lambda c, s: (s, c.predict(s, c.read(proxy))), states)
            targets, valid = aggregate(predictions, masks)
            states, losses = each(
                lambda client, mine, key: client.distill(
                    mine, client.read(proxy), targets, valid, key
                ),
                states,
                distilling,
            )
            metrics |= {
                "distill_loss": losses.mean(),
                "shared": masks.mean(dtype=jnp.float32),
                "valid": valid.mean(dtype=jnp.float32),
                "upload_bytes": masks.sum() * 4.0 * (targets.shape[-1] + 1),
            }
        return FederatedState(state.step + 1, state.key, states), metrics

    return Program(init, step)
