"""The loop, its checkpoints, meshes, metric files and progress bar."""

from jaxkd.training.ahead import DoesNotFit, StepPlan, plan_step
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.intervals import fit_intervals
from jaxkd.training.loop import fit
from jaxkd.training.metrics import Csv, JsonLines, MetricWriter, TensorBoard
from jaxkd.training.progress import ProgressBar
from jaxkd.training.sharding import (
    MESHES,
    MeshShape,
    make_mesh,
    shard_batch,
    state_sharding,
)

__all__ = [
    "MESHES",
    "Checkpoints",
    "Csv",
    "DoesNotFit",
    "JsonLines",
    "MeshShape",
    "MetricWriter",
    "ProgressBar",
    "StepPlan",
    "TensorBoard",
    "fit",
    "fit_intervals",
    "make_mesh",
    "plan_step",
    "shard_batch",
    "state_sharding",
]
