"""DMAE (Bai et al. 2022, arXiv:2208.12256): masked autoencoders teach smaller ones."""

from jaxkd.papers.dmae.networks import encoder_of as encoder_of
from jaxkd.papers.dmae.networks import fixed_positions as fixed_positions
from jaxkd.papers.dmae.networks import masked_autoencoder as masked_autoencoder
from jaxkd.papers.dmae.networks import mean_pooled as mean_pooled
from jaxkd.papers.dmae.networks import visible as visible
