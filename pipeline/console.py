"""What a stage says: progress with rate and time left, as a bar or, in a log, as lines; one
short table at its end.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from threading import Event, Thread
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


class Terminal(Console):
    """Whatever a name holds is printed as it is (no markup), and a reader that has gone (`|
    head`) stops no stage.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = Terminal(highlight=False, soft_wrap=True, markup=False, emoji=False)


def remark(word: str, colour: str, text: str) -> None:
    """A line that begins with a coloured word; a name in it that is no text is
    written with escapes.
    """
    console.print(
        Text.assemble((word, colour), " ", text.encode("utf-8", "backslashreplace").decode())
    )


class RateColumn(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="dim")


class Lines(Progress):
    """Progress where no one is watching (a log, CI): a plain line a minute for
    what is under way.
    """

    every = 60.0  # seconds
    over = Event()

    def start(self) -> None:
        self.over = Event()
        Thread(target=self._speak, daemon=True).start()

    def stop(self) -> None:
        self.over.set()

    def _speak(self) -> None:
        while not self.over.wait(self.every):
            for task in self.tasks:
                if not task.finished:
                    console.print(line(task), markup=False)


def line(task: Task) -> str:
    """What a task has done, of how much, and how long the rest will take."""
    of = "" if task.total is None else f" of {task.total:g}"
    left = task.time_remaining
    return f"{task.description}: {task.completed:g}{of}" + (
        "" if left is None else f", {duration(left)} left"
    )


def duration(seconds: float) -> str:
    """Seconds in the one or two units that matter: 40 s, 12 min, 3 h 20 min, 2 d 5 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def progress_bar() -> Progress:
    """A bar with rate and time left, or lines."""
    what = TextColumn("{task.description}", markup=False)
    columns = what, BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn()
    if console.is_terminal:
        return Progress(*columns, console=console, transient=True)
    return Lines(console=console, disable=True, speed_estimate_period=600)


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    with progress_bar() as bar:
        yield from bar.track(iterable, description=description, total=total)


def table(title: str, columns: list[str], rows: list[list]) -> None:
    """Print a table; floats with three digits, None as a dash."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    # a name is never cut
    grid.add_column(columns[0], justify="left", style="bold", overflow="fold")
    for column in columns[1:]:
        grid.add_column(column, justify="right")
    for row in rows:
        grid.add_row(
            *(
                Text("–" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v))
                for v in row
            )
        )
    console.print(grid)
