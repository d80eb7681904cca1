"""Arms are trained, tested, timed and kept by one loop, whatever their program is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Network
from jaxkd.reporting.experiment import Experiment, config_from_json
from jaxkd.reporting.run import Arm, Run, Task, run_arms
from jaxkd.types import Program

NETWORK = Network.from_apply(
    lambda key: {"w": jnp.zeros(2)}, lambda params, x: x * params["w"], reads=("x",)
)
STEPS = 4


def counting(start):
    """Return a program that adds 1 to its weights in every step."""

    def step(state, batch):
        return {"w": state["w"] + batch["x"].mean()}, {"loss": state["w"].sum()}

    return Program(lambda key, batch: {"w": jnp.full(2, start)}, step)


def make_task(**changes):
    fields = {
        "setting": "table",
        "batches": lambda seed: [{"x": np.ones((1, 2), np.float32)}] * STEPS,
        "steps": STEPS,
        "evaluate": lambda network: lambda state: {"nll": float(state["w"][0])},
        "evaluate_every": 2,
    }
    return Task(**(fields | changes))


def counter(name="count", start=0.0, **further):
    return Arm(name, counting(start), NETWORK, variables=lambda state: state, **further)


def weights(arm):
    return arm.deployed.init(jax.random.key(9))["params"]["w"][0]


def values(records):
    return {(r.method, r.seed, r.metric): r.value for r in records}


def test_an_arm_is_trained_and_measured_for_every_seed(tmp_path):
    arm = counter(measure=lambda state, history: {"points": len(history)})
    records = Run(tmp_path).train(arm, make_task(), [0, 1])
    assert values(records) == {
        ("count", seed, metric): value
        for seed in (0, 1)
        for metric, value in (("nll", 4.0), ("points", 2.0))
    }
    # The likelihood's course over both evaluations; the other is one number.
    assert [r.curve for r in records[:2]] == [(2.0, 4.0), ()]
    assert {r.setting for r in records} == {"table"}
    assert all(r.wall_time > 0 for r in records)
    assert (tmp_path / "table" / "count" / "seed1" / "checkpoints" / "4").is_dir()


def test_what_was_trained_is_not_trained_again(tmp_path):
    arm, task = counter(), make_task()
    first = Run(tmp_path).train(arm, task, [0])
    gone = make_task(batches=lambda seed: pytest.fail("trained again"))
    assert Run(tmp_path).train(arm, gone, [0]) == first
    # Only the seed that is missing is.
    both = Run(tmp_path).train(arm, task, [0, 1])
    assert both[: len(first)] == first
    assert len(both) == 2 * len(first)


def test_a_table_may_have_fewer_seeds_and_its_own_summary(tmp_path):
    task = make_task(seeds=2, summary=lambda history: {"best": history[0]["nll"]})
    records = Run(tmp_path).train(counter(), task, [0, 1, 2])
    assert values(records) == {("count", 0, "best"): 2.0, ("count", 1, "best"): 2.0}


def test_a_teacher_is_trained_once_and_then_only_tested(tmp_path):
    asked, run = [], Run(tmp_path)

    def batches(seed):
        asked.append(seed)
        return make_task().batches(seed)

    task = make_task(batches=batches, evaluate=None)
    teacher = run.teacher(counter("teacher", start=1.0), task, seed=3)
    assert asked == [3]
    assert teacher.program is None
    assert weights(teacher) == 5.0
    again = Run(tmp_path).teacher(counter("teacher", start=7.0), task, seed=3)
    assert weights(again) == 5.0
    # Nothing varies with the seed: one row, whatever seeds are asked for.
    test = make_task(
        evaluate=lambda network: lambda v: {"nll": float(v["params"]["w"][0])}
    )
    records = run.train(teacher, test, [0, 1])
    assert values(records) == {("teacher", 0, "nll"): 5.0}
    with pytest.raises(ValueError, match="arm 'teacher' has no program"):
        run.teacher(teacher, task)


def test_arms_are_made_anew_where_their_teacher_varies(tmp_path):
    made = []

    def arms(config, run, seed):
        made.append(seed)
        yield counter(start=float(seed)), make_task()

    once = run_arms(arms, None, [0, 1], Run(tmp_path / "once"))
    assert (made, [r.value for r in once]) == ([0], [4.0, 4.0])
    varies = ("teacher", "student", "order")
    experiment = Experiment({}, arms, varies=varies)
    anew = experiment.records(None, [0, 1], Run(tmp_path / "anew"))
    assert (made, [r.value for r in anew]) == ([0, 0, 1], [4.0, 5.0])


def test_an_experiment_without_arms_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'toy' has neither arms nor run"):
        Experiment({}, slug="toy").records(None, [0], Run(tmp_path))


def test_other_fields_than_a_presets_are_refused():
    from experiments.common.pairs import PairsConfig

    preset = PairsConfig()
    with pytest.raises(TypeError, match=r"other fields: .*optimiser"):
        config_from_json(preset, {"optimiser": {}})
