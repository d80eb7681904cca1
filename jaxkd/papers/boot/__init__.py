"""BOOT (Gu et al. 2023, arXiv:2306.05544): a one-step student of a diffusion model."""

from jaxkd.papers.boot.program import boot as boot
from jaxkd.papers.boot.program import denoiser as denoiser
