"""The loop, its checkpoints, meshes and progress bar."""

from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.loop import fit
from jaxkd.training.progress import ProgressBar
from jaxkd.training.sharding import data_mesh, shard_batch, shard_state

__all__ = [
    "Checkpoints",
    "ProgressBar",
    "data_mesh",
    "fit",
    "shard_batch",
    "shard_state",
]
