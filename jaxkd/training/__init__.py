"""The loop, its checkpoints, meshes, metric files and progress bar."""

from jaxkd.sharding.mesh import MESHES as MESHES
from jaxkd.sharding.mesh import MeshShape as MeshShape
from jaxkd.sharding.mesh import make_mesh as make_mesh
from jaxkd.sharding.mesh import shard_batch as shard_batch
from jaxkd.sharding.mesh import state_sharding as state_sharding
from jaxkd.training.ahead import DoesNotFit as DoesNotFit
from jaxkd.training.ahead import StepPlan as StepPlan
from jaxkd.training.ahead import plan_step as plan_step
from jaxkd.training.checkpoint import Checkpoints as Checkpoints
from jaxkd.training.intervals import fit_intervals as fit_intervals
from jaxkd.training.loop import fit as fit
from jaxkd.training.metrics import Csv as Csv
from jaxkd.training.metrics import JsonLines as JsonLines
from jaxkd.training.metrics import MetricWriter as MetricWriter
from jaxkd.training.metrics import TensorBoard as TensorBoard
from jaxkd.training.optimizers import decay_mask as decay_mask
from jaxkd.training.optimizers import layer_scales as layer_scales
from jaxkd.training.optimizers import part_labels as part_labels
from jaxkd.training.optimizers import scale_by_layer as scale_by_layer
from jaxkd.training.progress import ProgressBar as ProgressBar
from jaxkd.training.stopping import patience as patience
