"""``fallline check``: run claims, and compare what they give with the recorded evidence."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fallline.claims import PaperResult, Scale
    from fallline.study.executors import Lost

Job = tuple[str, str, int]


def run_job(job: Job) -> PaperResult:
    """Check one paper in a worker process."""
    from fallline.claims import Scale, check

    slug, scale, seed = job
    return check(slug, Scale(scale), seed)


def check(
    slugs: Annotated[list[str] | None, typer.Argument(help="Names of papers, such as lion.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All papers.")] = False,
    full: Annotated[bool, typer.Option("--full/--quick", help="The paper's own scale, or two cores and seconds.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Write evidence/SLUG.json instead of comparing with it.")] = False,
    seed: Annotated[int, typer.Option(help="Where the claims take their randomness from.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes side by side.")] = 1,
) -> None:
    """Run claims. Exit with 1 if one raised, or contradicts the recorded evidence."""
    from fallline import claims
    from fallline.core.errors import UnknownName
    from fallline.study import StudyError

    if every == bool(slugs):
        raise StudyError("check needs names of papers, or --all, and not both; `fallline papers` lists them")
    known = claims.slugs()
    for slug in slugs or ():
        if slug not in known:
            raise UnknownName("paper", slug, known)
    scale = claims.Scale.FULL if full else claims.Scale.QUICK
    wrong = 0
    for slug, result in _results([(slug, str(scale), seed) for slug in slugs or known], workers):
        said = _report(slug, result, record, scale)
        wrong += bool(said)
        for sentence in said:
            print(f"  {slug}: {sentence}", file=sys.stderr)
    if wrong:
        print(f"{wrong} of {len(slugs or known)} papers raised or contradict their record", file=sys.stderr)
        raise typer.Exit(1)


def _results(jobs: list[Job], workers: int) -> Iterator[tuple[str, PaperResult | Lost]]:
    """Every paper's result: in this process in order, in several as they end."""
    from fallline.study.executors import Executor, Serial
    from fallline.study.processes import Processes

    executor: Executor[Job, PaperResult] = Serial(run_job) if workers == 1 else Processes(run_job, workers)
    try:
        for job in jobs:
            executor.submit(job)
        for _ in jobs:
            job, outcome = executor.finished()
            yield job[0], outcome
    finally:
        executor.close()


def _report(slug: str, result: PaperResult | Lost, record: bool, scale: Scale) -> list[str]:
    """Print what a paper's claims gave; the sentences returned say what is wrong."""
    from fallline import claims
    from fallline.claims._evidence import describe
    from fallline.study.executors import Lost

    if isinstance(result, Lost):
        return [f"could not be run\n{result.reason}"]
    seconds = sum(claim.seconds for claim in result.claims)
    print(f"{slug}: {result.verdict or 'raised'} ({seconds:.1f} s)")
    for claim in result.claims:
        print(f"  {claim.statement}: {claim.evidence.verdict if claim.evidence else 'raised'}")
        for figure in claim.evidence.figures if claim.evidence else ():
            print(f"    {describe(figure)}")
    if result.errors:
        return [f"{name} raised\n{error}" for name, error in result.errors.items()]
    if record:
        print(f"  written: {claims.record(result)}")
        return []
    found = claims.read(slug, scale)
    if found is None:
        print(f"  nothing is recorded; `fallline check {slug} --record` writes it")
        return []
    return claims.contradictions(found, result)
