"""HARD (Nix, Burg, Sinz 2023, arXiv:2305.14890): augmentations that are learned."""

from jaxkd.papers.hard.augmenters import Augmented as Augmented
from jaxkd.papers.hard.augmenters import Augmenter as Augmenter
from jaxkd.papers.hard.augmenters import Controller as Controller
from jaxkd.papers.hard.augmenters import affine as affine
from jaxkd.papers.hard.augmenters import affine_augment as affine_augment
from jaxkd.papers.hard.augmenters import colour as colour
from jaxkd.papers.hard.augmenters import colour_augment as colour_augment
from jaxkd.papers.hard.augmenters import control as control
from jaxkd.papers.hard.augmenters import elastic as elastic
from jaxkd.papers.hard.augmenters import elastic_augment as elastic_augment
from jaxkd.papers.hard.augmenters import within as within
from jaxkd.papers.hard.fixed import rand_augment as rand_augment
from jaxkd.papers.hard.fixed import random_affine as random_affine
from jaxkd.papers.hard.mixing import latent as latent
from jaxkd.papers.hard.mixing import latent_augment as latent_augment
from jaxkd.papers.hard.mixing import mix as mix
from jaxkd.papers.hard.mixing import mix_augment as mix_augment
from jaxkd.papers.hard.program import HardState as HardState
from jaxkd.papers.hard.program import hard as hard
from jaxkd.papers.hard.program import phase_update as phase_update
from jaxkd.papers.hard.vae import elbo_loss as elbo_loss
from jaxkd.papers.hard.vae import vae as vae
