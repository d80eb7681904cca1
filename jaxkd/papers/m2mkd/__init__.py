"""m2mKD: networks as modules, stitches, hybrids with a frozen meta model, loading."""

from jaxkd.papers.m2mkd.hybrids import chained as chained
from jaxkd.papers.m2mkd.hybrids import hybrids as hybrids
from jaxkd.papers.m2mkd.modules import LoadReport as LoadReport
from jaxkd.papers.m2mkd.modules import assemble_modules as assemble_modules
from jaxkd.papers.m2mkd.modules import load_modules as load_modules
from jaxkd.papers.m2mkd.modules import split_depths as split_depths
from jaxkd.papers.m2mkd.modules import split_modules as split_modules
from jaxkd.papers.m2mkd.modules import variables_of as variables_of
from jaxkd.papers.m2mkd.stitches import Stitch as Stitch
from jaxkd.papers.m2mkd.stitches import stitched as stitched
