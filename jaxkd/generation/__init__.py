"""Text from language models: prefill, then one token at a time from a cache."""

from jaxkd.generation.decoding import Generated as Generated
from jaxkd.generation.decoding import generate as generate
from jaxkd.generation.sampling import GREEDY as GREEDY
from jaxkd.generation.sampling import Sampling as Sampling
from jaxkd.generation.sampling import keep_top_k as keep_top_k
from jaxkd.generation.sampling import keep_top_p as keep_top_p
from jaxkd.generation.sampling import sample as sample
from jaxkd.generation.sampling import sampling_log_prob as sampling_log_prob
from jaxkd.generation.sampling import sampling_logits as sampling_logits
