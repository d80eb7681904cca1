"""What holds of every experiment: its parts fit, and its names are each other's."""

import dataclasses
import json

import jax
import pytest
import tyro

from jaxkd.reporting.experiment import config_from_json, load_experiment, slugs
from jaxkd.reporting.plans import read_plans
from jaxkd.reporting.results import read_results
from jaxkd.training import MESHES

every = pytest.mark.parametrize("slug", slugs())


@every
def test_an_experiment_is_whole(slug):
    found = load_experiment(slug)
    assert found.title
    assert found.summary
    assert {"small", "paper"} <= set(found.presets)
    assert (found.arms is None) != (found.run is None)
    assert found.full_scale is not None
    assert found.mesh in MESHES
    assert set(found.seeds) <= set(found.presets)
    assert {"student", "order"} <= set(found.varies)
    names = [claim.name for claim in found.claims]
    assert names
    assert len(names) == len(set(names))


@every
def test_presets_come_back_from_a_runs_file_and_from_the_command_line(slug):
    for preset in load_experiment(slug).presets.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(preset, dataclasses.fields(preset)[0].name, None)
        kept = json.loads(json.dumps(dataclasses.asdict(preset)))
        assert config_from_json(preset, kept) == preset
        assert tyro.cli(type(preset), default=preset, args=[]) == preset


def strings(value):
    """Yield the names in a configuration: rows are among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


@every
def test_claims_and_the_papers_numbers_are_about_rows_that_exist(slug):
    experiment = load_experiment(slug)
    presets = map(dataclasses.asdict, experiment.presets.values())
    rows = {name for preset in presets for name in strings(preset)}
    for file in (experiment.folder / "results").glob("*.json"):
        if file.stem != "compiled":
            rows |= {record.method for record in read_results(file).records}
    named = {claim.method for claim in experiment.claims if claim.method}
    named |= {name.rpartition("/")[2] for name in experiment.paper}
    assert named <= rows


@pytest.mark.slow
@every
def test_the_paper_is_compiled_and_its_first_program_has_shapes(slug):
    experiment = load_experiment(slug)
    programs = experiment.full_scale(experiment.preset("paper"))
    assert set(programs) & set(read_plans(experiment.committed("compiled")))
    program, batch = next(iter(programs.values()))
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(program.step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["loss"].shape == ()


ON_A_GPU = [slug for slug in slugs() if "gpu" in load_experiment(slug).presets]


@pytest.mark.slow
@pytest.mark.parametrize("slug", ON_A_GPU)
def test_what_is_for_one_gpu_lowers_for_it(slug):
    experiment = load_experiment(slug)
    for program, batch in experiment.full_scale(experiment.preset("gpu")).values():
        state = jax.eval_shape(program.init, jax.random.key(0), batch)
        step = jax.jit(lambda *given: program.step(*given))  # noqa: B023
        found = jax.export.export(step, platforms=["cuda"])(state, batch)
        assert "stablehlo" in found.mlir_module()
