"""Which method to use: tune all alike, run the best settings over fresh seeds, report what the spread allows to be said.

``compare`` is for people, ``runs`` is the machinery beneath it that claims and tests share; ``stored`` gives the comparisons that a
storage holds.
"""

from fallline.study.comparison import Comparison, compare, stored
from fallline.study.leaderboard import Row
from fallline.study.runs import runs
from fallline.study.settings import Contender, Entrant
from fallline.study.sources import ProblemSpec, StudyError
from fallline.study.spread import Spread, spread
from fallline.study.storage import Database, Memory
from fallline.study.table import RunTable, Side, Terms
from fallline.study.trial import Record

__all__ = [
    "Comparison",
    "Contender",
    "Database",
    "Entrant",
    "Memory",
    "ProblemSpec",
    "Record",
    "Row",
    "RunTable",
    "Side",
    "Spread",
    "StudyError",
    "Terms",
    "compare",
    "runs",
    "spread",
    "stored",
]
