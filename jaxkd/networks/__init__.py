"""Networks made of other networks: ensembles, second heads, mixtures, adapters."""

from jaxkd.networks.class_maps import with_class_maps as with_class_maps
from jaxkd.networks.dual_head import dual_head as dual_head
from jaxkd.networks.dual_head import dual_head_apply as dual_head_apply
from jaxkd.networks.ensemble import ensemble as ensemble
from jaxkd.networks.ensemble import member as member
from jaxkd.networks.ensemble import with_logits as with_logits
from jaxkd.networks.lora import LoraConfig as LoraConfig
from jaxkd.networks.lora import merged as merged
from jaxkd.networks.lora import with_lora as with_lora
from jaxkd.networks.mixed import mixed as mixed
from jaxkd.networks.side_by_side import side_by_side as side_by_side
from jaxkd.networks.subclasses import with_subclasses as with_subclasses
