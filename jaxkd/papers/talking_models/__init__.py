"""Talking Models (Zhao et al. 2023, arXiv:2310.03188): networks exchange messages."""

from jaxkd.papers.talking_models.method import Codecs as Codecs
from jaxkd.papers.talking_models.method import Exchange as Exchange
from jaxkd.papers.talking_models.method import MessageCodec as MessageCodec
from jaxkd.papers.talking_models.method import interact as interact
from jaxkd.papers.talking_models.method import interaction_loss as interaction_loss
from jaxkd.papers.talking_models.method import (
    message_consistency_loss as message_consistency_loss,
)
from jaxkd.papers.talking_models.method import (
    state_consistency_loss as state_consistency_loss,
)
from jaxkd.papers.talking_models.method import talking as talking
