"""docs/extending.md is true: each of its changes, applied to a copy, adds what it says in as
few places as it says.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTIONS = dict(
    re.findall(
        r"^## ([^\n]+)\n.*?^```diff\n(.*?)^```",
        (ROOT / "docs/extending.md").read_text(),
        re.M | re.S,
    )
)
MOST = {
    "An attack": 4,
    "A certificate": 4,
    "A source": 5,
    "A metric": 3,
    "An architecture": 2,
    "A corruption": 2,
    "An adaptation": 2,
}
USES = {
    "An attack": """
import torch
from pipeline import params
from pipeline.attacks.engine import Target
from pipeline.attacks.methods import methods
from pipeline.networks.models import build_model
from pipeline.report.colours import ATTACKS
segmenter = build_model(params.Model(architecture="linear"), 3).eval().requires_grad_(False)
for values in segmenter.parameters():  # bright ground is building: grey around its threshold is easily moved
    values.copy_(torch.tensor([-1.0, 1.0]).view(2, *[1] * (values.ndim - 1)) * (1 if values.ndim > 1 else -1.5))
images = 0.5 + torch.linspace(-0.01, 0.01, 256).view(16, 16).expand(2, 3, 16, 16)
labels = segmenter(images).argmax(1)
attack = params.Attack(methods=["bim"])
found = methods(attack, torch.ones(2), torch.Generator())["bim"](Target(segmenter, images, labels, "linf", 2 / 255))
assert 0 < (found - images).abs().max() <= 2 / 255 + 1e-6 and "bim" in ATTACKS
""",
    "A certificate": """
import torch
from pipeline import params
from pipeline.certificates.ordering import ROWS
from pipeline.networks.models import build_model
torch.manual_seed(0)
segmenter = build_model(params.Model(architecture="linear"), 3).eval().requires_grad_(False)
images = torch.rand(2, 3, 16, 16)
labels, settings = segmenter(images).argmax(1), params.Certify(methods=["exact"]).exact
row = ROWS["exact"](segmenter, (images, labels), settings, 2, 0, "here")["1"]
assert row["certified"] <= row["attacked"] <= row["clean"] == 1
assert params.METHODS["exact"].certifies(params.Model(architecture="linear"))
""",
    "A source": """
from pathlib import Path
from pipeline import params
from pipeline.stages import fetch
settings = params.Fetch(source="empty_lots", path="here", cities=["lot"])
Path("lot").mkdir()
city = fetch.source_of("empty_lots").fetch(settings, "lot", Path("lot"), Path("work"))
assert city.scenes[0].labels and Path("lot/lot.tif").exists()
""",
    "A metric": """
import numpy as np
from pipeline.scoring.evaluation import MEASURES, CityResult
assert MEASURES["specificity"](CityResult("a", 0.5, pixels=np.array([1, 2, 3, 6]))) == 6 / 8
""",
    "An architecture": """
import torch
from pipeline import params
from pipeline.networks.models import build_model
assert build_model(params.Model(architecture="two_layers"), 3)(torch.rand(1, 3, 9, 7)).shape == (1, 2, 9, 7)
""",
    "A corruption": """
import numpy as np
from pipeline.transfer.corruptions import NAMES, TABLE
corrupt, severities = TABLE["sepia"]
grey = corrupt(np.random.rand(4, 4, 3), severities[-1], None)
assert "sepia" in NAMES and np.allclose(grey, grey.mean(-1, keepdims=True))
""",
    "An adaptation": """
import numpy as np, torch
from pipeline import params
from pipeline.networks.models import build_model
from pipeline.transfer.adaptation import adapt
segmenter = build_model(params.Model(architecture="linear"), 3).eval()
bright, dark = (np.full((1, 8, 8, 3), value, np.uint8) for value in (200, 100))
adapted = adapt("brightness", segmenter, bright, dark)
assert torch.allclose(adapted(torch.full((1, 3, 8, 8), 100 / 255)), segmenter(torch.full((1, 3, 8, 8), 200 / 255)))
params.Generalize(adaptation=["brightness"])
""",
}


# Each use in a process of its own, forked from one that has imported torch.
FORKS = """
import json, os, sys, torch
for folder, use in json.load(sys.stdin).items():
    if os.fork() == 0:
        sys.path.insert(0, folder)
        exec(use, {})
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{folder}: not what the page says")
"""


def test_each_change_of_the_page_adds_what_it_says(tmp_path):
    uses = {}
    for kind, change in SECTIONS.items():
        assert len(re.findall(r"^@@.*\n", change, re.M)) <= MOST[kind], kind
        copy = tmp_path / kind
        shutil.copytree(
            ROOT / "pipeline", copy / "pipeline", ignore=shutil.ignore_patterns("__pycache__")
        )
        done = subprocess.run(
            ["git", "apply", "-C1"], input=change, text=True, cwd=copy, capture_output=True
        )
        assert done.returncode == 0, f"{kind}: {done.stderr}"
        uses[str(copy)] = USES[kind]
    (tmp_path / "used").mkdir()
    used = subprocess.run(
        [sys.executable, "-c", FORKS],
        input=json.dumps(uses),
        cwd=tmp_path / "used",
        capture_output=True,
        text=True,
    )
    assert used.returncode == 0, used.stderr


def test_every_kind_is_used():
    assert SECTIONS.keys() == USES.keys() == MOST.keys()
