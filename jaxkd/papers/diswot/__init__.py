"""DisWOT (Dong et al. 2023, arXiv:2303.15678): a student's score without training."""

from jaxkd.papers.diswot.method import diswot as diswot
from jaxkd.papers.diswot.scorer import Scorer as Scorer
from jaxkd.papers.diswot.scores import Statistics as Statistics
from jaxkd.papers.diswot.scores import channel_similarity as channel_similarity
from jaxkd.papers.diswot.scores import diswot_score as diswot_score
from jaxkd.papers.diswot.scores import fc_grad as fc_grad
from jaxkd.papers.diswot.scores import gaussian_reinit as gaussian_reinit
from jaxkd.papers.diswot.scores import relation_similarity as relation_similarity
from jaxkd.papers.diswot.scores import semantic_similarity as semantic_similarity
