"""SwiftKV (Qiao et al. 2024, arXiv:2410.03960): prompts skip half of the layers."""

from jaxkd.papers.swiftkv.method import swiftkv as swiftkv
from jaxkd.papers.swiftkv.model import swiftkv_llama as swiftkv_llama
