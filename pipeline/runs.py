"""How long each run of a verb took, and on what: one line a run in
.work/runs.jsonl, for the report.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pipeline.storage import WORK

RUNS = WORK / "runs.jsonl"


@contextmanager
def recorded(arguments: list[str]) -> Generator[None]:
    """Time what happens within; nothing is written where it fails or there is
    no pipeline to speak of.
    """
    started = time.perf_counter()
    yield
    if not arguments or "--help" in arguments or not Path("params.yaml").exists():
        return
    run = {
        "verb": arguments[0],
        "arguments": arguments[1:],
        "seconds": round(time.perf_counter() - started, 1),
        "finished": datetime.now().astimezone().isoformat(timespec="minutes"),
        "hardware": hardware(),
    }
    # a full or read-only disk: the run itself is done, and this note is no reason to fail
    with suppress(OSError):
        RUNS.parent.mkdir(exist_ok=True)
        with RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")


def last_runs(root: Path) -> list[dict]:
    """The last run of each verb and arguments under `root`."""
    path = root / RUNS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return list(
        {(run["verb"], *run["arguments"]): run for run in filter(None, map(_run, lines))}.values()
    )


def _run(line: str) -> dict | None:
    """A line that a full disk cut short says nothing."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def hardware() -> str:
    """The processor, its cores open to this process, and the GPU if this process has used one."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_initialized() else None
    return ", ".join(filter(None, [processor(), f"{cores()} cores", gpu]))


LOAD = Path("/proc/loadavg")  # whose fourth word counts who wants a core: RUNNING/ALL


def cores() -> int:
    """The cores this process may use."""
    # not on macOS
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_cores() -> int:
    """The cores this process may use that no other keeps busy, at least one; all where the system
    does not say. A step on two threads takes three times as long as on one where another process
    has the second core.
    """
    if not LOAD.exists():
        return cores()
    others = []
    for _ in range(5):  # the least of a twentieth of a second: who only passes by is not counted
        others.append(int(LOAD.read_text().split()[3].split("/")[0]) - 1)
        time.sleep(0.01)
    return max(1, min(cores(), (os.cpu_count() or 1) - min(others)))


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
