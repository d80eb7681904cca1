"""The published top-1 accuracies on CIFAR-100, as fractions, by pair and method.

Rows of CRD's benchmark (Tian et al. 2020, arXiv:1910.10699, and its public table) are
of the last epoch. DKD, DIST, CTKD, LSKD and ReviewKD are as their authors publish them,
of the best epoch.
"""

from jaxkd.reporting.paper import paper_table

COLUMNS = (
    "resnet56-resnet20",
    "resnet110-resnet32",
    "resnet32x4-resnet8x4",
    "wrn40_2-wrn16_2",
    "wrn40_2-wrn40_1",
    "vgg13-vgg8",
    "resnet50-mobilenet_v2",
    "resnet32x4-shufflenet_v1",
    "resnet32x4-shufflenet_v2",
)

LAST_EPOCH = {
    "teacher": "72.34 74.31 79.42 75.61 75.61 74.64 79.34 79.42 79.42",
    "cross_entropy": "69.06 71.14 72.50 73.26 71.98 70.36 64.60 70.50 71.82",
    "kd": "70.66 73.08 73.33 74.92 73.54 72.98 67.35 74.07 74.45",
    "fitnets": "69.21 71.06 73.50 73.58 72.24 71.02 63.16 73.59 73.54",
    "at": "70.55 72.31 73.44 74.08 72.77 71.43 58.58 71.73 72.73",
    "sp": "69.67 72.69 72.94 73.83 72.43 72.68 68.08 73.48 74.56",
    "cc": "69.63 71.48 72.97 73.56 72.21 70.71 65.43 71.14 71.29",
    "vid": "70.38 72.61 73.09 74.11 73.30 71.23 67.57 73.38 73.40",
    "rkd": "69.61 71.82 71.90 73.35 72.22 71.48 64.43 72.28 73.21",
    "pkt": "70.34 72.61 73.64 74.54 73.45 72.88 66.52 74.10 74.69",
    "ab": "69.47 70.98 73.17 72.50 72.38 70.94 67.20 73.55 74.31",
    "ft": "69.84 72.37 72.86 73.25 71.59 70.58 60.99 71.75 72.50",
    "fsp": "69.95 71.89 72.62 72.91 - 70.23 - - -",
    "nst": "69.60 71.96 73.30 73.68 72.24 71.53 64.96 74.12 74.68",
    "crd": "71.16 73.48 75.51 75.48 74.14 73.94 69.11 75.11 75.65",
}

BEST_EPOCH = {
    "dkd": "71.97 74.11 76.32 76.23 74.81 74.68 70.35 76.45 77.07",
    "dist": "71.75 - 76.31 - 74.43 - 68.66 76.34 77.35",
    "ctkd": "71.19 73.52 73.39 75.45 73.93 73.52 68.67 - 75.37",
    "lskd": "71.43 74.17 76.62 76.11 74.37 74.36 69.02 - 75.56",
    "reviewkd": "71.89 - 75.63 - 75.09 - 69.89 77.45 77.78",
}

CRD = "table of RepDistiller's README"
OWN = "table of the method's README"

PAPER = {
    **paper_table("last_accuracy", COLUMNS, LAST_EPOCH, CRD, checked=True),
    **paper_table("best_accuracy", COLUMNS, BEST_EPOCH, OWN, checked=True),
}
