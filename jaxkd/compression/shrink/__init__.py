"""Narrower networks: how important heads and channels are, and which of them stay."""

from jaxkd.compression.shrink.decoders import DecoderMask as DecoderMask
from jaxkd.compression.shrink.decoders import extract_decoder as extract_decoder
from jaxkd.compression.shrink.decoders import mask_decoder as mask_decoder
from jaxkd.compression.shrink.importance import InputStatistics as InputStatistics
from jaxkd.compression.shrink.importance import group_scores as group_scores
from jaxkd.compression.shrink.importance import input_statistics as input_statistics
from jaxkd.compression.shrink.importance import magnitude_scores as magnitude_scores
from jaxkd.compression.shrink.importance import update_statistics as update_statistics
from jaxkd.compression.shrink.importance import wanda_scores as wanda_scores
from jaxkd.compression.shrink.importance import wifv_scores as wifv_scores
from jaxkd.compression.shrink.widths import compensation_bias as compensation_bias
from jaxkd.compression.shrink.widths import global_width_masks as global_width_masks
from jaxkd.compression.shrink.widths import top_mask as top_mask
