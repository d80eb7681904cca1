"""A toy federation, in one process or over Flower, for the tests of both.

``python worker.py FOLDER PORT server CLIENTS TIMEOUT`` writes ``FOLDER/server.json`` at
the end; ``python worker.py FOLDER PORT NUMBER [echo] [FAULT@ROUND ...]`` is a client,
which writes ``FOLDER/NUMBER.npz``, or has no model with ``echo``. Its faults are
``killed``, ``nan``, ``shape`` and ``slow``.
"""

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax

from jaxkd import Network
from jaxkd.data import Source, build_proxy, partition
from jaxkd.federated import Rounds, draw_private, edgefd_mask, id_threshold, kmeans_fit
from jaxkd.federated.engine import Coordinator, Participant, Upload
from jaxkd.programs import fd_client

CLIENTS, CLASSES, ROUNDS, SIZE, PROXY_SIZE, SEED = 3, 3, 3, 8, 12, 7


def blobs(examples=90):
    rng = np.random.default_rng(0)
    label = np.arange(examples) % CLASSES
    image = rng.normal(size=(examples, 4)).astype("f4")
    image[np.arange(examples), label] += 4
    return Source("blobs", {"image": image, "label": label.astype("i4")}, CLASSES)


@functools.cache
def client():
    """Return a linear model's client: it compiles in a moment."""
    linear = Network.from_apply(
        lambda key: 0.1 * jax.random.normal(key, (4, CLASSES)), lambda w, x: x @ w
    )
    return fd_client(
        linear,
        optax.sgd(1e-1, momentum=0.9),
        local_steps=2,
        distill_steps=2,
        distill_batch_size=6,
    )


@jax.jit
def filtered(data, proxies, own):
    """Return which proxies a client speaks about, by a filter fitted on its data."""
    centroids, _ = kmeans_fit(data, 2, jax.random.key(0))
    return edgefd_mask(proxies, centroids, id_threshold(data, centroids, 95.0), own)


def divided(source):
    """Return each client's examples, the proxies, and who gave them."""
    parts = partition(source.arrays["label"], CLIENTS, "strong", seed=0)
    return parts, *build_proxy(parts, 0.2, seed=0)


def rounds(source):
    parts, proxies, owner = divided(source)
    images = source.arrays["image"]
    masks = [
        filtered(images[part], images[proxies], owner == number)
        for number, part in enumerate(parts)
    ]
    masks = np.stack(jax.device_get(masks))
    return Rounds(source, parts, proxies, masks, ROUNDS, SIZE, PROXY_SIZE, SEED)


def participant(source, number, kind=Participant):
    parts, proxies, owner = divided(source)
    images = source.arrays["image"]

    def private(round_number):
        drawn = draw_private(parts[number], SIZE, SEED, round_number, number)
        batch = source.take(drawn)
        return {name: batch[name] for name in ("image", "label")}

    return kind(
        number,
        client(),
        private,
        images[proxies[owner == number]],
        lambda given, own: filtered(images[parts[number]], given, own),
        jax.random.key(SEED),
        lambda variables: 0.5,
    )


def coordinator():
    return Coordinator(CLASSES, (4,), PROXY_SIZE, SEED)


def failing(kind, faults):
    """Return a kind of participant whose answers go wrong in some rounds."""

    class Failing(kind):
        def contribute(self, round_number, drawn):
            upload = super().contribute(round_number, drawn)
            fault = faults.get(round_number)
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "slow":
                time.sleep(600)
            if fault == "nan":
                return Upload(np.full_like(upload.predictions, np.nan), upload.rows)
            if fault == "shape":
                return Upload(upload.predictions[:, :-1], upload.rows)
            return upload

    return Failing


class Echo:
    """A participant without a model, which answers at once."""

    def __init__(self, number):
        self.number, self.own = number, np.full((4, 4), number, np.float32)

    def meet(self, proxies, owner):
        self.proxies = proxies

    def contribute(self, round_number, drawn):
        return Upload(np.eye(CLASSES, dtype="f4")[:2], np.arange(2, dtype="i4"))

    def absorb(self, targets, valid):
        return float(targets.sum()), 0.5


def main(folder, port, who, *rest):
    from jaxkd.federated.flower import join, serve

    folder, address = Path(folder), f"127.0.0.1:{port}"
    if who == "server":
        server, clients, timeout = coordinator(), int(rest[0]), float(rest[1])
        history = serve(
            server, address, clients=clients, rounds=ROUNDS, round_timeout=timeout
        )
        result = {"history": history, "excluded": server.excluded}
        (folder / "server.json").write_text(json.dumps(result))
        return
    faults = {int(r): fault for fault, _, r in (x.partition("@") for x in rest) if r}
    if "echo" in rest:
        join(failing(Echo, faults)(int(who)), address)
        return
    mine = participant(blobs(), int(who), failing(Participant, faults))
    join(mine, address)
    leaves = jax.tree.leaves(mine.state)
    np.savez(folder / f"{who}.npz", **{str(i): x for i, x in enumerate(leaves)})


if __name__ == "__main__":
    main(*sys.argv[1:])
