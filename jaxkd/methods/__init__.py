"""Distillation methods, one module a paper: constructors that return a `Method`."""

from collections.abc import Callable

from jaxkd.methods.ab import ab
from jaxkd.methods.akl import akl
from jaxkd.methods.at import at
from jaxkd.methods.base import combine, from_loss, from_module
from jaxkd.methods.bdkd import bdkd
from jaxkd.methods.cached import cached
from jaxkd.methods.cc import cc
from jaxkd.methods.crd import crd
from jaxkd.methods.cross_entropy import cross_entropy
from jaxkd.methods.ctkd import ctkd
from jaxkd.methods.cwd import cwd
from jaxkd.methods.ddk import ddk, ddk_weights, discrepancy_init, discrepancy_update
from jaxkd.methods.denoising import denoising
from jaxkd.methods.dhkd import dhkd
from jaxkd.methods.dho import dho
from jaxkd.methods.dist import dist
from jaxkd.methods.diswot import diswot
from jaxkd.methods.divergence_kd import divergence_kd
from jaxkd.methods.dkd import dkd
from jaxkd.methods.dml import dml
from jaxkd.methods.ffg2m import ffg2m, high_frequency, low_frequency
from jaxkd.methods.first import first
from jaxkd.methods.fitnets import fitnets
from jaxkd.methods.fsp import fsp
from jaxkd.methods.ft import ft, paraphrased, paraphraser_loss
from jaxkd.methods.glnn import glnn, labelled_cross_entropy
from jaxkd.methods.hidden_kd import hidden_kd, relation_kd
from jaxkd.methods.kd import kd
from jaxkd.methods.kdcl import kdcl
from jaxkd.methods.linear_kd import linear_kd
from jaxkd.methods.lskd import lskd
from jaxkd.methods.mgd import mgd
from jaxkd.methods.minillm import minillm
from jaxkd.methods.nst import nst
from jaxkd.methods.ofakd import exit_logits, ofakd
from jaxkd.methods.ofd import ofd
from jaxkd.methods.one import one
from jaxkd.methods.pkt import pkt
from jaxkd.methods.pld import pld
from jaxkd.methods.reviewkd import reviewkd
from jaxkd.methods.rkd import rkd
from jaxkd.methods.schedules import ctkd_curriculum, epoch_warmup
from jaxkd.methods.shared_vocabulary import shared_vocabulary
from jaxkd.methods.simkd import simkd, simkd_student
from jaxkd.methods.sinkd import sinkd
from jaxkd.methods.sp import sp
from jaxkd.methods.swiftkv import swiftkv
from jaxkd.methods.taid import taid
from jaxkd.methods.tgeokd import fused_kd, tgeokd
from jaxkd.methods.topk_kd import top_k_targets, topk_kd
from jaxkd.methods.uld import uld
from jaxkd.methods.vid import vid
from jaxkd.types import Method

METHODS: dict[str, Callable[..., Method]] = {
    "ab": ab,
    "akl": akl,
    "at": at,
    "bdkd": bdkd,
    "cc": cc,
    "crd": crd,
    "cross_entropy": cross_entropy,
    "ctkd": ctkd,
    "cwd": cwd,
    "ddk": ddk,
    "denoising": denoising,
    "dhkd": dhkd,
    "dho": dho,
    "dist": dist,
    "diswot": diswot,
    "divergence_kd": divergence_kd,
    "dkd": dkd,
    "dml": dml,
    "ffg2m": ffg2m,
    "first": first,
    "fitnets": fitnets,
    "fsp": fsp,
    "ft": ft,
    "fused_kd": fused_kd,
    "glnn": glnn,
    "hidden_kd": hidden_kd,
    "kd": kd,
    "kdcl": kdcl,
    "linear_kd": linear_kd,
    "lskd": lskd,
    "mgd": mgd,
    "minillm": minillm,
    "nst": nst,
    "ofakd": ofakd,
    "ofd": ofd,
    "one": one,
    "pkt": pkt,
    "pld": pld,
    "relation_kd": relation_kd,
    "reviewkd": reviewkd,
    "rkd": rkd,
    "simkd": simkd,
    "sinkd": sinkd,
    "sp": sp,
    "swiftkv": swiftkv,
    "taid": taid,
    "tgeokd": tgeokd,
    "topk_kd": topk_kd,
    "uld": uld,
    "vid": vid,
}
"""Method constructors by name."""

__all__ = [
    "METHODS",
    "ab",
    "akl",
    "at",
    "bdkd",
    "cached",
    "cc",
    "combine",
    "crd",
    "cross_entropy",
    "ctkd",
    "ctkd_curriculum",
    "cwd",
    "ddk",
    "ddk_weights",
    "denoising",
    "dhkd",
    "dho",
    "discrepancy_init",
    "discrepancy_update",
    "dist",
    "diswot",
    "divergence_kd",
    "dkd",
    "dml",
    "epoch_warmup",
    "exit_logits",
    "ffg2m",
    "first",
    "fitnets",
    "from_loss",
    "from_module",
    "fsp",
    "ft",
    "fused_kd",
    "glnn",
    "hidden_kd",
    "high_frequency",
    "kd",
    "kdcl",
    "labelled_cross_entropy",
    "linear_kd",
    "low_frequency",
    "lskd",
    "mgd",
    "minillm",
    "nst",
    "ofakd",
    "ofd",
    "one",
    "paraphrased",
    "paraphraser_loss",
    "pkt",
    "pld",
    "relation_kd",
    "reviewkd",
    "rkd",
    "shared_vocabulary",
    "simkd",
    "simkd_student",
    "sinkd",
    "sp",
    "swiftkv",
    "taid",
    "tgeokd",
    "top_k_targets",
    "topk_kd",
    "uld",
    "vid",
]
