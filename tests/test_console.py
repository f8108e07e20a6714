"""What is said where no one watches."""

import time
from io import StringIO

import pytest
from rich.console import Console

from pipeline import console


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5400, "90 min"),
        (12_000, "3 h 20 min"),
        (190_800, "2 d 5 h"),
    ],
)
def test_a_duration_is_said_in_units_that_matter(seconds, says):
    assert console.duration(seconds) == says


def test_a_log_gets_a_line_now_and_then_even_while_one_step_takes_long(monkeypatch):
    monkeypatch.setattr(console.Lines, "every", 0.01)
    monkeypatch.setattr(console, "console", Console(file=(log := StringIO())))

    def steps():
        yield from ("first", "second")
        for _ in range(3000):
            if "mapping [a]: 2 of 3" in log.getvalue():
                break
            time.sleep(0.01)
        yield "third"

    assert list(console.progress(steps(), "mapping [a]", 3)) == ["first", "second", "third"]
    assert "mapping [a]: 2 of 3" in log.getvalue()
