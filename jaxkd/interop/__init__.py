"""Weights in and out."""

from jaxkd.interop.folders import export_program as export_program
from jaxkd.interop.folders import load_pretrained as load_pretrained
from jaxkd.interop.folders import load_program as load_program
from jaxkd.interop.folders import save_pretrained as save_pretrained
from jaxkd.interop.peft import load_adapter as load_adapter
from jaxkd.interop.peft import save_adapter as save_adapter
from jaxkd.interop.torch_weights import load_torch_resnet as load_torch_resnet
from jaxkd.interop.weights import load_weights as load_weights
from jaxkd.interop.weights import save_weights as save_weights
