"""Weights in and out."""

from jaxkd.interop.folders import export_program, load_pretrained, save_pretrained

__all__ = ["export_program", "load_pretrained", "save_pretrained"]
