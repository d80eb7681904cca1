"""KD-AIF: distil, ask which examples helped, weigh them, and distil again."""

from jaxkd.papers.kdaif.rounds import Models as Models
from jaxkd.papers.kdaif.rounds import Round as Round
from jaxkd.papers.kdaif.rounds import kd_aif_round as kd_aif_round
