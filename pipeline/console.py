"""What a stage says on the terminal: progress with rate and time left, and one short table at its end."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


class Terminal(Console):
    """Whatever a name holds is printed as it is (no markup), and a reader that has gone (`| head`) stops no stage."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = Terminal(highlight=False, soft_wrap=True, markup=False, emoji=False)


def remark(word: str, colour: str, text: str) -> None:
    """A line that begins with a coloured word; a name in it that is no text is written with escapes."""
    console.print(Text.assemble((word, colour), " ", text.encode("utf-8", "backslashreplace").decode()))


class RateColumn(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="dim")


def progress_bar() -> Progress:
    """A bar with rate and time left; it draws nothing where no one is watching (a log, CI)."""
    what = TextColumn("{task.description}", markup=False)
    columns = what, BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    with progress_bar() as bar:
        yield from bar.track(iterable, description=description, total=total)


def table(title: str, columns: list[str], rows: list[list]) -> None:
    """Print a table; floats with three digits, None as a dash."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i == 0 else "right", style="bold" if i == 0 else None)
    for row in rows:
        grid.add_row(*(Text("–" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v)) for v in row))
    console.print(grid)
