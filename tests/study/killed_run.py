"""A script that a test kills: a slow comparison with two workers."""

from __future__ import annotations

import sys

from sides import PROBLEM, SLOW

from fallline.study import runs

if __name__ == "__main__":
    runs(PROBLEM, [SLOW], tune=10, seeds=4, workers=2, storage=sys.argv[1])
