"""The command ``fallline``: compare methods, begin a problem, list papers, show one, run claims, write the gallery.

Modules that take time to import are imported by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys

import typer

from fallline.cli.beginning import new_problem
from fallline.cli.comparing import compare, report
from fallline.cli.reading import gallery, papers, show
from fallline.cli.verifying import check

app = typer.Typer(
    name="fallline",
    help="Descent methods on PyTorch, each with its paper's claim as an experiment you can run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, report, new_problem, papers, show, check, gallery):
    app.command()(command)


def main() -> None:
    """Run the command line: 0 if all is well, 1 if a claim contradicts its record or raised, 2 if the question was wrong."""
    try:
        app()
    except Exception as error:
        from fallline.core.errors import FalllineError  # imported here: it brings torch, which --help does not need

        if not isinstance(error, FalllineError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
