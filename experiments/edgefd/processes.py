"""The small setting over Flower: a server and ten clients, each a process.

``python -m experiments.edgefd.processes server`` on one machine, and
``python -m experiments.edgefd.processes client --number 0 --address HOST:8080`` up to
``--number 9`` there or on others. A client reads its own part of the data only.
"""

from dataclasses import replace

import jax
import numpy as np
import tyro

from experiments.edgefd.config import CLASSES, PRESETS
from experiments.edgefd.experiment import client_of
from experiments.edgefd.federation import divide, load_dataset
from jaxkd import data
from jaxkd.evaluation.classification import evaluator
from jaxkd.federated import centroid_filter, draw_private
from jaxkd.federated.engine import Coordinator, Participant

ADDRESS = "127.0.0.1:8080"


def server(
    address: str = ADDRESS,
    clients: int = PRESETS["small"].clients,
    rounds: int = PRESETS["small"].rounds,
    round_timeout: float = 60.0,
) -> None:
    """Run the rounds, and print each one's mean accuracy and what was left out.

    Args:
        address: to listen on.
        clients: to wait for.
        rounds: how many.
        round_timeout: seconds after which a round goes on without a client.
    """
    from jaxkd.federated.flower import serve

    # More than all proxies there can be: every round asks about all.
    coordinator = Coordinator(CLASSES, (8, 8, 1), PRESETS["small"].train_examples)
    history = serve(
        coordinator,
        address,
        clients=clients,
        rounds=rounds,
        round_timeout=round_timeout,
    )
    for entry in history:
        # A client that tells none does not take the mean from the others.
        told = [x for x in entry["accuracy"].values() if x == x]
        accuracy = np.mean(told or [np.nan])
        print(
            f"round {entry['round']}: accuracy {accuracy:.3f} of "
            f"{entry['contributors']} contributors, {entry['upload_bytes']} bytes"
        )
    for exclusion in coordinator.excluded:
        print(exclusion)


def client(
    number: int,
    address: str = ADDRESS,
    kind: data.Kind = "strong",
    clients: int = PRESETS["small"].clients,
    seed: int = 0,
) -> None:
    """Take part until the server ends the run.

    Args:
        number: of this client, from 0.
        address: of the server.
        kind: of the division of the data; the same for all clients.
        clients: likewise.
        seed: likewise.
    """
    from jaxkd.federated.flower import join

    config = replace(PRESETS["small"], clients=clients)
    dataset, _ = load_dataset(config, "digits")
    images, labels = (dataset.train.arrays[name] for name in ("image", "label"))
    features = images.reshape(len(images), -1)
    division = divide(config, labels, features, kind, seed)
    mine = division.parts[number]
    key = jax.random.fold_in(jax.random.key(seed), number)
    passes = centroid_filter(features[mine], key, config.centroids, config.percentile)
    network, steps = client_of(config, "digits")
    evaluate = evaluator(network, dataset.test)

    def private(round_number: int) -> dict[str, np.ndarray]:
        size = config.local_steps * config.local_batch_size
        drawn = draw_private(mine, size, seed, round_number, number)
        batch = dataset.train.take(drawn)
        return {"image": batch["image"], "label": batch["label"]}

    participant = Participant(
        number,
        steps,
        private,
        images[division.proxies[division.owner == number]],
        lambda given, own: np.asarray(passes(given.reshape(len(given), -1), own)),
        jax.random.key(seed),
        lambda variables: evaluate(variables)["accuracy"],
    )
    join(participant, address)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"server": server, "client": client})
