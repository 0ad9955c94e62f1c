"""`palaestra report`: one self-contained HTML page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .text_files import write_text


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="What `palaestra train` wrote: runs/NAME.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The HTML file. (default: RUN_FOLDER/report.html)")
    ] = None,
    pairs: Annotated[int, typer.Option(min=0, help="How many tasks to show with their trajectories.")] = 16,
) -> None:
    """Write one self-contained HTML page: curves, a before/after table, trajectories to read, a viewer of episodes.

    It needs no network, so it can be mailed or kept with the run. A run that is not finished gives a page that says
    what is missing. The viewer has up to 500 episodes: filters for failures, parse errors, truncations, levels, steps
    and words, orders such as lowest advantage first, and tokens coloured by what the policy sampled, how likely it was,
    and its advantage.

    Examples:

    ```
    palaestra report runs/quickstart
    palaestra report runs/quickstart -o quickstart.html --pairs 40
    ```

    **Output**: `RUN_FOLDER/report.html`, or the file named by `-o`.
    """
    print(f"report: {write_report(run_folder, output or run_folder / 'report.html', pairs)}")


def write_report(run_folder: Path, output: Path, pairs: int = 16) -> Path:
    """Reads a run folder and writes its report; gives the path of the page.

    Raises:
        RecordError: There is no run in the folder, or one of its files is damaged.
        StorageError: The page cannot be written.
    """
    from .report_data import read_run
    from .report_page import render

    write_text(output, render(read_run(run_folder), pairs))
    return output
