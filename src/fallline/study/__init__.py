"""Which method to use: tune all alike, run the best settings over fresh seeds, report what the spread allows to be said.

``compare`` is for people, ``runs`` is the machinery beneath it that claims and tests share.
"""

from fallline.study.comparison import Comparison, Row, compare
from fallline.study.runs import RunTable, Side, runs
from fallline.study.settings import Contender
from fallline.study.sources import ProblemSpec, StudyError
from fallline.study.spread import Spread, spread
from fallline.study.storage import Database, Memory
from fallline.study.trial import Record

__all__ = [
    "Comparison",
    "Contender",
    "Database",
    "Memory",
    "ProblemSpec",
    "Record",
    "Row",
    "RunTable",
    "Side",
    "Spread",
    "StudyError",
    "compare",
    "runs",
    "spread",
]
