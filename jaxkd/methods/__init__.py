"""Distillation methods, one module a paper: constructors that return a `Method`."""

from collections.abc import Callable

from jaxkd.methods.ab import ab
from jaxkd.methods.at import at
from jaxkd.methods.base import combine, from_loss, from_module
from jaxkd.methods.cc import cc
from jaxkd.methods.crd import crd
from jaxkd.methods.cross_entropy import cross_entropy
from jaxkd.methods.ctkd import ctkd
from jaxkd.methods.cwd import cwd
from jaxkd.methods.dist import dist
from jaxkd.methods.dkd import dkd
from jaxkd.methods.dml import dml
from jaxkd.methods.fitnets import fitnets
from jaxkd.methods.fsp import fsp
from jaxkd.methods.ft import ft, paraphrased, paraphraser_loss
from jaxkd.methods.kd import kd
from jaxkd.methods.kdcl import kdcl
from jaxkd.methods.lskd import lskd
from jaxkd.methods.mgd import mgd
from jaxkd.methods.nst import nst
from jaxkd.methods.ofd import ofd
from jaxkd.methods.one import one
from jaxkd.methods.pkt import pkt
from jaxkd.methods.reviewkd import reviewkd
from jaxkd.methods.rkd import rkd
from jaxkd.methods.schedules import ctkd_curriculum, epoch_warmup
from jaxkd.methods.simkd import simkd, simkd_student
from jaxkd.methods.sp import sp
from jaxkd.methods.vid import vid
from jaxkd.types import Method

METHODS: dict[str, Callable[..., Method]] = {
    "ab": ab,
    "at": at,
    "cc": cc,
    "crd": crd,
    "cross_entropy": cross_entropy,
    "ctkd": ctkd,
    "cwd": cwd,
    "dist": dist,
    "dkd": dkd,
    "dml": dml,
    "fitnets": fitnets,
    "fsp": fsp,
    "ft": ft,
    "kd": kd,
    "kdcl": kdcl,
    "lskd": lskd,
    "mgd": mgd,
    "nst": nst,
    "ofd": ofd,
    "one": one,
    "pkt": pkt,
    "reviewkd": reviewkd,
    "rkd": rkd,
    "simkd": simkd,
    "sp": sp,
    "vid": vid,
}
"""Method constructors by name."""

__all__ = [
    "METHODS",
    "ab",
    "at",
    "cc",
    "combine",
    "crd",
    "cross_entropy",
    "ctkd",
    "ctkd_curriculum",
    "cwd",
    "dist",
    "dkd",
    "dml",
    "epoch_warmup",
    "fitnets",
    "from_loss",
    "from_module",
    "fsp",
    "ft",
    "kd",
    "kdcl",
    "lskd",
    "mgd",
    "nst",
    "ofd",
    "one",
    "paraphrased",
    "paraphraser_loss",
    "pkt",
    "reviewkd",
    "rkd",
    "simkd",
    "simkd_student",
    "sp",
    "vid",
]
