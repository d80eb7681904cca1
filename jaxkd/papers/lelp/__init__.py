"""LELP (Loo et al. 2024, arXiv:2409.20449): where a class's sub-classes are found."""

from jaxkd.papers.lelp.directions import class_pca as class_pca
from jaxkd.papers.lelp.directions import null_space_projector as null_space_projector
from jaxkd.papers.lelp.directions import subclass_directions as subclass_directions
