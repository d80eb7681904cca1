"""Models of Flax NNX, Flax Linen and plain functions as what a `Network` is made of."""

from jaxkd.adapters.calls import Adapted as Adapted
from jaxkd.adapters.flax_linen import adapt_linen as adapt_linen
from jaxkd.adapters.flax_nnx import abstract_module as abstract_module
from jaxkd.adapters.flax_nnx import adapt_nnx as adapt_nnx
from jaxkd.adapters.flax_nnx import merge_module as merge_module
from jaxkd.adapters.flax_nnx import split_module as split_module
from jaxkd.adapters.functions import adapt_functions as adapt_functions
from jaxkd.adapters.steps import NO_EDITS as NO_EDITS
from jaxkd.adapters.steps import WHOLE as WHOLE
from jaxkd.adapters.steps import Edits as Edits
from jaxkd.adapters.steps import Segment as Segment
from jaxkd.adapters.steps import Steps as Steps
from jaxkd.adapters.steps import Tap as Tap
from jaxkd.adapters.steps import segment_name as segment_name
from jaxkd.adapters.steps import unchanged as unchanged
from jaxkd.adapters.variables import as_variables as as_variables
