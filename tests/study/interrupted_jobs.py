"""A script that a test kills or interrupts: it runs jobs and has no word about how it ends."""

from __future__ import annotations

import sys

import jobs

from fallline.study.cluster import Cluster
from fallline.study.processes import Processes

if __name__ == "__main__":
    where, *names = sys.argv[1:]
    executor = Processes(jobs.work, 2) if where == "processes" else Cluster(jobs.work, "local", cpus=2)
    try:
        for name in names:
            executor.submit(tuple(name.split(",")))
        print("submitted", flush=True)
        executor.finished()
    finally:
        executor.close()
