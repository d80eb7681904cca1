"""Any iterable of batches: each is read in order, begun again or ended as promised."""

import re
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from grain import DataLoader, MapDataset
from grain.samplers import IndexSampler

import jaxkd
from jaxkd import Program, data, methods, models, training
from jaxkd.training import Checkpoints, fit

KEY = jax.random.key(0)
BATCHES = [{"x": np.full((2, 3), i, np.float32)} for i in range(1, 5)]


def step(state, batch):
    """Fold the batches' means in an order that shows."""
    value = state["value"] / 2 + batch["x"].mean()
    return {"value": value}, {"loss": value}


TOY = Program(lambda key, batch: {"value": jnp.zeros(())}, step)


def folded(*order):
    state = np.float32(0)
    for i in order:
        state = state / 2 + i
    return state


class Tensor:
    """Another library's array, such as PyTorch's on the CPU."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


class Loader:
    """It can be read again, and does not know where it is, as PyTorch's."""

    def __init__(self, batches=BATCHES):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return ({"x": Tensor(batch["x"])} for batch in self.batches)


class Records:
    """A random-access source for grain's loader."""

    def __len__(self):
        return len(BATCHES)

    def __getitem__(self, i):
        return BATCHES[i]

    def __repr__(self):
        return "Records()"


def grain_loader(epochs=1):
    return DataLoader(
        data_source=Records(), sampler=IndexSampler(len(BATCHES), num_epochs=epochs)
    )


AGAIN = {
    "list": lambda: BATCHES,
    "tuple": lambda: tuple(BATCHES),
    "loader": Loader,
}
ONCE = {
    "generator": lambda: (batch for batch in BATCHES),
    "lists for arrays": lambda: ({"x": b["x"].tolist()} for b in BATCHES),
    "grain map": lambda: MapDataset.source(BATCHES),
    "grain iter": lambda: MapDataset.source(BATCHES).to_iter_dataset(),
    "grain loader": grain_loader,
}


@pytest.mark.parametrize("kind", [*AGAIN, *ONCE])
def test_each_batch_is_read_once_in_order(kind):
    state, history = fit(TOY, (AGAIN | ONCE)[kind](), key=KEY)
    assert state["value"] == folded(1, 2, 3, 4)
    assert history[-1]["step"] == 4


@pytest.mark.parametrize("kind", AGAIN)
def test_what_can_be_read_again_is_until_the_steps_are_done(kind):
    state, _ = fit(TOY, AGAIN[kind](), key=KEY, steps=9)
    assert state["value"] == folded(1, 2, 3, 4, 1, 2, 3, 4, 1)


@pytest.mark.parametrize("kind", ONCE)
def test_a_generator_and_grain_data_end_and_it_is_said(kind, caplog):
    state, history = fit(TOY, ONCE[kind](), key=KEY, steps=9)
    assert state["value"] == folded(1, 2, 3, 4)
    assert history[-1]["step"] == 4
    assert "batches ended after 4 of 9 steps" in caplog.text


def test_a_loader_that_grain_repeats_says_its_epochs_itself():
    state, _ = fit(TOY, grain_loader(epochs=2), key=KEY, steps=7)
    assert state["value"] == folded(1, 2, 3, 4, 1, 2, 3)


@pytest.mark.parametrize("kind", ["list", "tuple", "grain map", "grain loader"])
def test_what_knows_its_place_resumes_there(kind, tmp_path):
    for steps in (3, None):
        with Checkpoints(tmp_path) as checkpoints:
            state, _ = fit(
                TOY,
                (AGAIN | ONCE)[kind](),
                key=KEY,
                steps=steps,
                checkpoints=checkpoints,
            )
    assert state["value"] == folded(1, 2, 3, 4)


def test_a_list_resumes_in_a_later_round(tmp_path):
    for steps in (6, 9):
        with Checkpoints(tmp_path) as checkpoints:
            state, _ = fit(TOY, BATCHES, key=KEY, steps=steps, checkpoints=checkpoints)
    assert state["value"] == folded(1, 2, 3, 4, 1, 2, 3, 4, 1)


@pytest.mark.parametrize("kind", ["loader", "generator"])
def test_checkpoints_of_what_knows_no_place_are_refused(kind, tmp_path):
    message = rf"is a {kind}, which cannot say where it is.*a list.*without checkp"
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=f"(?i){message}"),
    ):
        fit(TOY, (AGAIN | ONCE)[kind](), key=KEY, checkpoints=checkpoints)


@pytest.mark.parametrize("empty", [[], Loader([]), iter([])])
@pytest.mark.parametrize("steps", [None, 3])
def test_nothing_to_train_on_is_refused(empty, steps):
    with pytest.raises(ValueError, match="batches is empty: there is nothing to tr"):
        fit(TOY, empty, key=KEY, steps=steps)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(Tensor(1), Tensor(2))], r"a batch is a tuple of Tensor, Tensor, but.*dict"),
        ([np.ones(3)], r"a batch is a ndarray, but must be a dict.*collate_fn"),
        ([{"x": ["a", "b"]}], r"batch\['x'\] holds str_, not numbers: leave it out"),
        ([{"x": {"y": None, "z": "a"}}], r"batch\['x'\]\['z'\] holds str_, not"),
    ],
)
def test_a_batch_that_is_no_dict_of_arrays_is_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        fit(TOY, batches, key=KEY)


@pytest.mark.parametrize(
    "given", [BATCHES[0], 3, data.Source("toy", {"label": np.zeros(4, int)}, 1)]
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_holds_no_batches_is_refused(given):
    message = f"batches is a {type(given).__name__}, but must be an iterable of dicts"
    with pytest.raises(ValueError, match=message):
        fit(TOY, given, key=KEY)


class StandIn:
    """What of PyTorch's ``DataLoader`` the documentation uses."""

    def __init__(self, dataset, batch_size, shuffle, drop_last, collate_fn):
        assert shuffle
        assert drop_last
        self.dataset, self.size, self.collate = dataset, batch_size, collate_fn

    def __iter__(self):
        order = np.random.default_rng(0).permutation(len(self.dataset))
        for i in range(0, len(order) - self.size + 1, self.size):
            yield self.collate([self.dataset[j] for j in order[i : i + self.size]])


@pytest.mark.slow
def test_the_documentations_loaders_and_its_stop(monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    sections = re.search(r"## Your own loader(.*)## Checkpoints, pre", page, re.S)
    blocks = re.findall(r"```(?:{code-cell}|python)\n(.*?)```", sections[1], re.S)
    assert len(blocks) == 3
    for name in ("torch", "torch.utils", "torch.utils.data"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torch.utils.data"].DataLoader = StandIn
    rng = np.random.default_rng(0)
    dataset = [(rng.normal(size=(3, 4, 4)).astype("f4"), i % 10) for i in range(40)]
    names = {
        "jax": jax,
        "np": np,
        "optax": optax,
        "jaxkd": jaxkd,
        "data": data,
        "models": models,
        "training": training,
        "cross_entropy": methods.cross_entropy,
        "rng": rng,
        "dataset": dataset,
    }
    for block in blocks:
        exec(block, names)
        steps = names["history"][-1]["step"]
        if block is blocks[1]:
            assert steps == 100
    assert "'step': 5" in capsys.readouterr().out
    assert 24 < steps < 1000
    losses = [entry["nll"] for entry in names["history"]]
    assert np.argmin(losses) == len(losses) - 4
