"""Stage report: one self-contained page of all that has run, which opens from a USB stick."""

from pathlib import Path

from pipeline.console import console
from pipeline.params import Params
from pipeline.storage import atomic_file


def run(params: Params, root: Path = Path(), out: Path | None = None) -> None:
    """Write report/index.html of the folder `root`. Raises InputError where a metrics file is damaged."""
    from pipeline.report.page import page
    from pipeline.report.results import Results

    out = out or root / "report/index.html"
    text = page(Results(params, root))
    with atomic_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    console.print(f"report: {out}, {out.stat().st_size / 1e6:.1f} MB")
