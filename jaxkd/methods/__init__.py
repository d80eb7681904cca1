"""Distillation methods, one module a paper: constructors that return a `Method`."""

from collections.abc import Callable

from jaxkd.methods.ab import ab
from jaxkd.methods.at import at
from jaxkd.methods.base import combine, from_loss, from_module
from jaxkd.methods.bdkd import bdkd
from jaxkd.methods.cached import cached
from jaxkd.methods.cc import cc
from jaxkd.methods.crd import crd
from jaxkd.methods.cross_entropy import cross_entropy
from jaxkd.methods.ctkd import ctkd
from jaxkd.methods.cwd import cwd
from jaxkd.methods.denoising import denoising
from jaxkd.methods.dhkd import dhkd
from jaxkd.methods.dho import dho
from jaxkd.methods.dist import dist
from jaxkd.methods.diswot import diswot
from jaxkd.methods.dkd import dkd
from jaxkd.methods.dml import dml
from jaxkd.methods.ffg2m import ffg2m, high_frequency, low_frequency
from jaxkd.methods.fitnets import fitnets
from jaxkd.methods.fsp import fsp
from jaxkd.methods.ft import ft, paraphrased, paraphraser_loss
from jaxkd.methods.glnn import glnn, labelled_cross_entropy
from jaxkd.methods.kd import kd
from jaxkd.methods.kdcl import kdcl
from jaxkd.methods.linear_kd import linear_kd
from jaxkd.methods.lskd import lskd
from jaxkd.methods.mgd import mgd
from jaxkd.methods.nst import nst
from jaxkd.methods.ofakd import exit_logits, ofakd
from jaxkd.methods.ofd import ofd
from jaxkd.methods.one import one
from jaxkd.methods.pkt import pkt
from jaxkd.methods.pld import pld
from jaxkd.methods.reviewkd import reviewkd
from jaxkd.methods.rkd import rkd
from jaxkd.methods.schedules import ctkd_curriculum, epoch_warmup
from jaxkd.methods.simkd import simkd, simkd_student
from jaxkd.methods.sp import sp
from jaxkd.methods.tgeokd import fused_kd, tgeokd
from jaxkd.methods.vid import vid
from jaxkd.types import Method

METHODS: dict[str, Callable[..., Method]] = {
    "ab": ab,
    "at": at,
    "bdkd": bdkd,
    "cc": cc,
    "crd": crd,
    "cross_entropy": cross_entropy,
    "ctkd": ctkd,
    "cwd": cwd,
    "denoising": denoising,
    "dhkd": dhkd,
    "dho": dho,
    "dist": dist,
    "diswot": diswot,
    "dkd": dkd,
    "dml": dml,
    "ffg2m": ffg2m,
    "fitnets": fitnets,
    "fsp": fsp,
    "ft": ft,
    "fused_kd": fused_kd,
    "glnn": glnn,
    "kd": kd,
    "kdcl": kdcl,
    "linear_kd": linear_kd,
    "lskd": lskd,
    "mgd": mgd,
    "nst": nst,
    "ofakd": ofakd,
    "ofd": ofd,
    "one": one,
    "pkt": pkt,
    "pld": pld,
    "reviewkd": reviewkd,
    "rkd": rkd,
    "simkd": simkd,
    "sp": sp,
    "tgeokd": tgeokd,
    "vid": vid,
}
"""Method constructors by name."""

__all__ = [
    "METHODS",
    "ab",
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
    "denoising",
    "dhkd",
    "dho",
    "dist",
    "diswot",
    "dkd",
    "dml",
    "epoch_warmup",
    "exit_logits",
    "ffg2m",
    "fitnets",
    "from_loss",
    "from_module",
    "fsp",
    "ft",
    "fused_kd",
    "glnn",
    "high_frequency",
    "kd",
    "kdcl",
    "labelled_cross_entropy",
    "linear_kd",
    "low_frequency",
    "lskd",
    "mgd",
    "nst",
    "ofakd",
    "ofd",
    "one",
    "paraphrased",
    "paraphraser_loss",
    "pkt",
    "pld",
    "reviewkd",
    "rkd",
    "simkd",
    "simkd_student",
    "sp",
    "tgeokd",
    "vid",
]
