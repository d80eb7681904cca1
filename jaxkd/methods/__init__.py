"""Distillation methods, one module a paper: constructors that return a `Method`."""

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

from jaxkd.methods.ab import ab as ab
from jaxkd.methods.akl import akl as akl
from jaxkd.methods.aligned_kd import aligned_kd as aligned_kd
from jaxkd.methods.at import at as at
from jaxkd.methods.base import combine as combine
from jaxkd.methods.base import from_loss as from_loss
from jaxkd.methods.base import from_module as from_module
from jaxkd.methods.bdkd import bdkd as bdkd
from jaxkd.methods.cached import cached as cached
from jaxkd.methods.cc import cc as cc
from jaxkd.methods.crd import crd as crd
from jaxkd.methods.cross_entropy import cross_entropy as cross_entropy
from jaxkd.methods.ctkd import ctkd as ctkd
from jaxkd.methods.cwd import cwd as cwd
from jaxkd.methods.ddk import ddk as ddk
from jaxkd.methods.ddk import ddk_weights as ddk_weights
from jaxkd.methods.ddk import discrepancy_init as discrepancy_init
from jaxkd.methods.ddk import discrepancy_update as discrepancy_update
from jaxkd.methods.denoising import denoising as denoising
from jaxkd.methods.dhkd import dhkd as dhkd
from jaxkd.methods.dho import dho as dho
from jaxkd.methods.dist import dist as dist
from jaxkd.methods.divergence_kd import divergence_kd as divergence_kd
from jaxkd.methods.dkd import dkd as dkd
from jaxkd.methods.dmae import dmae as dmae
from jaxkd.methods.dmae import feature_align as feature_align
from jaxkd.methods.dml import dml as dml
from jaxkd.methods.expert_balance import expert_balance as expert_balance
from jaxkd.methods.ffg2m import ffg2m as ffg2m
from jaxkd.methods.ffg2m import high_frequency as high_frequency
from jaxkd.methods.ffg2m import low_frequency as low_frequency
from jaxkd.methods.first import first as first
from jaxkd.methods.fitnets import fitnets as fitnets
from jaxkd.methods.fsp import fsp as fsp
from jaxkd.methods.ft import ft as ft
from jaxkd.methods.ft import paraphrased as paraphrased
from jaxkd.methods.ft import paraphraser_loss as paraphraser_loss
from jaxkd.methods.glnn import glnn as glnn
from jaxkd.methods.glnn import labelled_cross_entropy as labelled_cross_entropy
from jaxkd.methods.hidden_kd import hidden_kd as hidden_kd
from jaxkd.methods.hidden_kd import relation_kd as relation_kd
from jaxkd.methods.kd import kd as kd
from jaxkd.methods.kdcl import kdcl as kdcl
from jaxkd.methods.lelp import lelp as lelp
from jaxkd.methods.lelp import subclass_kd as subclass_kd
from jaxkd.methods.linear_kd import linear_kd as linear_kd
from jaxkd.methods.lskd import lskd as lskd
from jaxkd.methods.m2mkd import m2mkd as m2mkd
from jaxkd.methods.mae import mae as mae
from jaxkd.methods.mgd import mgd as mgd
from jaxkd.methods.minillm import minillm as minillm
from jaxkd.methods.mixstd import mixstd as mixstd
from jaxkd.methods.nd import nd as nd
from jaxkd.methods.nst import nst as nst
from jaxkd.methods.ofakd import exit_logits as exit_logits
from jaxkd.methods.ofakd import ofakd as ofakd
from jaxkd.methods.ofd import ofd as ofd
from jaxkd.methods.one import one as one
from jaxkd.methods.pkt import pkt as pkt
from jaxkd.methods.pld import pld as pld
from jaxkd.methods.reviewkd import reviewkd as reviewkd
from jaxkd.methods.rkd import rkd as rkd
from jaxkd.methods.schedules import ctkd_curriculum as ctkd_curriculum
from jaxkd.methods.schedules import epoch_warmup as epoch_warmup
from jaxkd.methods.several_teachers import by_confidence as by_confidence
from jaxkd.methods.several_teachers import by_domain as by_domain
from jaxkd.methods.several_teachers import several_teachers as several_teachers
from jaxkd.methods.shared_vocabulary import shared_vocabulary as shared_vocabulary
from jaxkd.methods.simkd import simkd as simkd
from jaxkd.methods.simkd import simkd_student as simkd_student
from jaxkd.methods.sinkd import sinkd as sinkd
from jaxkd.methods.sp import sp as sp
from jaxkd.methods.taid import taid as taid
from jaxkd.methods.tgeokd import fused_kd as fused_kd
from jaxkd.methods.tgeokd import tgeokd as tgeokd
from jaxkd.methods.topk_kd import top_k_targets as top_k_targets
from jaxkd.methods.topk_kd import topk_kd as topk_kd
from jaxkd.methods.topkld import topkld as topkld
from jaxkd.methods.trg import trg as trg
from jaxkd.methods.uld import uld as uld
from jaxkd.methods.vid import vid as vid
from jaxkd.registry import constructors
from jaxkd.types import Method

METHODS = constructors(
    globals(),
    Method,
    besides=(
        *("cached", "combine", "from_loss", "from_module"),
        *("paraphraser_loss", "several_teachers", "shared_vocabulary"),
    ),
)
"""Method constructors by name."""


class _Constructor(ModuleType):
    """A method's module, which is called as the function of its own name.

    ``methods.taid(...)`` and ``import jaxkd.methods.taid as m`` read one attribute of
    this package, so it must be both.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)


for _name, _value in list(globals().items()):
    _module: Any = sys.modules.get(f"{__name__}.{_name}")
    if _module and getattr(_value, "__module__", "") == _module.__name__:
        # Signature and help are the function's, found by ``__wrapped__``.
        functools.update_wrapper(_module, _value, ("__doc__",), ())
        _module.__class__ = _Constructor
        globals()[_name] = _module
