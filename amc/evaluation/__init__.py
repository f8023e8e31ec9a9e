"""Score policies: evaluators and their settings, races, rewards, and the problem that searchers see."""

from amc.evaluation.backend import Backend, Forwarding, FunctionBackend
from amc.evaluation.cached import CachedBackend, CachedSearch
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.memo import Memo, open_cache
from amc.evaluation.networks import PolicyNetworks
from amc.evaluation.problem import Problem, StudyLocation
from amc.evaluation.reward import Evaluation, Reward, load_reward
from amc.evaluation.score import Race, Score
from amc.evaluation.settings import EvaluationSettings, Reconstruction, SearchObjective
from amc.evaluation.site_errors import SiteErrors

__all__ = [
    "Backend",
    "CachedBackend",
    "CachedSearch",
    "Evaluation",
    "EvaluationSettings",
    "Evaluator",
    "Forwarding",
    "FunctionBackend",
    "Memo",
    "PolicyNetworks",
    "Problem",
    "Race",
    "Reconstruction",
    "Reward",
    "Score",
    "SearchObjective",
    "SiteErrors",
    "StudyLocation",
    "load_reward",
    "open_cache",
]
