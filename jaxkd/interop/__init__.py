"""Weights in and out."""

from jaxkd.interop.folders import export_program, load_pretrained, save_pretrained
from jaxkd.interop.torch_weights import load_torch_resnet

__all__ = [
    "export_program",
    "load_pretrained",
    "load_torch_resnet",
    "save_pretrained",
]
