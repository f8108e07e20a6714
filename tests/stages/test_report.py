"""The page: what it says, what it never does (load anything, run a city's
name), and that its viewer works.
"""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from report_factory import STAGES, commit, make, write

from pipeline.attacks.audit import CHECKS, AuditFailed
from pipeline.errors import InputError
from pipeline.metrics import Sandwich
from pipeline.params import load_params
from pipeline.report import charts, provenance
from pipeline.report.answer import answer
from pipeline.report.changes import changes
from pipeline.report.results import Results
from pipeline.report.viewer import pictures
from pipeline.stages import report

SECTIONS = {
    "answer",
    "viewer",
    "map",
    "unseen",
    "attack",
    "certified",
    "explained",
    "detail",
    "provenance",
}
# stages, and sections of their names, that run where they are asked for
ASKED = {"incremental", "privacy"}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking "
    "--disable-component-update --disable-sync"
)
EVIL = "<script>alert('x')<-script>"


def params_of(cities: list[str]):
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    changed = {"fetch": {"cities": cities}, "generalize": {"epochs": None}}
    return params.model_copy(
        update={k: getattr(params, k).model_copy(update=v) for k, v in changed.items()}
    )


def written(root: Path, cities: list[str], stages: tuple = STAGES) -> str:
    report.run(params_of(cities), make(root, cities, stages))
    return (root / "report/index.html").read_text(encoding="utf-8")


def sections(page: str) -> set[str]:
    return set(re.findall(r'<section id="(\w+)"', page))


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """The report of three cities, one with a name that would be code."""
    root = tmp_path_factory.mktemp("three")
    written(root, ["sunnyside", "$x_1$ & co", EVIL])
    return root


def test_answer_is_sorted_by_the_worst_and_says_it_in_words(three):
    found = answer(Results(params_of(["sunnyside", "$x_1$ & co", EVIL]), three))
    assert [city for city, _ in found.rows] == [EVIL, "$x_1$ & co", "sunnyside"]
    assert [kind.name for kind in found.kinds] == ["seen", "unseen", "attacked", "certified"]
    generalize = json.loads((three / "metrics/generalize.json").read_text())["city"][EVIL]
    attack = json.loads((three / "metrics/attack.json").read_text())["city"][EVIL]["linf"]["1"][
        "worst"
    ]
    row = dict(found.rows)[EVIL]
    assert (row["unseen"].iou, row["unseen"].low) == (
        generalize["unseen"],
        generalize["unseen_low"],
    )
    assert row["attacked"].iou == attack
    assert f"expect {generalize['unseen']:.2f}, 0.20 less than where it was trained" in found.lead
    tiles = row["attacked"].of
    assert tiles > attack and f"takes {EVIL} from {tiles:.2f} down to {attack:.2f}" in found.lead
    metrics = {
        path.stem: json.loads(path.read_text()) for path in (three / "metrics/report").iterdir()
    }
    assert metrics[EVIL]["attacked"] == attack
    unseen = [metrics[city]["unseen"] for city in (EVIL, "$x_1$ & co", "sunnyside")]
    assert metrics["mean_city"]["unseen"] == pytest.approx(sum(unseen) / 3)


def brief(root: Path, cities: list[str], gaps: dict[str, tuple[float, float]]) -> Results:
    """Of models trained for one epoch, with seen and unseen IoU as given."""
    make(root, cities, ("evaluate",))
    write(
        root / "metrics/generalize.json",
        {"city": {c: {"seen": s, "unseen": u} for c, (s, u) in gaps.items()}},
    )
    params = params_of(cities)
    return Results(
        params.model_copy(
            update={"generalize": params.generalize.model_copy(update={"epochs": 1})}
        ),
        root,
    )


def test_models_trained_more_briefly_are_compared_with_their_equals_only(tmp_path):
    """The city that a short training hardly learns is neither the lead's nor
    first: its IoU says nothing.
    """
    found = answer(
        brief(
            tmp_path,
            ["easy", "hard", "slow"],
            {"easy": (0.7, 0.6), "hard": (0.7, 0.1), "slow": (0.01, 0.02)},
        )
    )
    assert (
        "A city like hard, never seen: 0.10, where an equally short training that saw it reaches "
        "0.70." in found.lead
    )
    # as the delivered model maps them
    assert [city for city, _ in found.rows] == ["slow", "hard", "easy"]
    assert dict(found.rows)["hard"]["unseen"].of == 0.7
    epochs = params_of([]).train.epochs
    assert f"1, not {epochs} epochs" in next(
        kind.meaning for kind in found.kinds if kind.name == "unseen"
    )


def test_what_a_short_training_sees_is_called_so_where_the_delivered_model_is_not_measured(
    tmp_path,
):
    results = brief(tmp_path, ["here"], {"here": (0.7, 0.6)})
    meanings = {kind.name: kind.meaning for kind in answer(results).kinds}
    assert "epochs" not in meanings["seen"]
    (tmp_path / "metrics/evaluate.json").unlink()
    found = answer(Results(results.params, tmp_path))
    meanings = {kind.name: kind.meaning for kind in found.kinds}
    assert dict(found.rows)["here"]["seen"].iou == 0.7
    assert meanings["seen"].endswith(f", by a model of 1, not {results.params.train.epochs} epochs")


def test_a_gap_that_is_none_is_called_no_less(tmp_path):
    lead = answer(brief(tmp_path, ["here"], {"here": (0.30, 0.31)})).lead
    assert (
        "A city like here, never seen: 0.31, no less than an equally short training that saw it."
        in lead
    )


@pytest.mark.parametrize(
    ("radius", "said"), [("0.03399", "0.033 in length"), ("0.06745", "0.067 in length")]
)
def test_a_proven_radius_is_rounded_down(tmp_path, radius, said):
    make(tmp_path, ["here"], ())
    row = {"clean": 0.8, "attacked": 0.6, "certified": 0.5}
    write(tmp_path / "metrics/certify.json", {"smoothing": {"city": {"here": {radius: row}}}})
    assert (
        f"up to {said} (ℓ2), 0.50 is proven" in answer(Results(params_of(["here"]), tmp_path)).lead
    )


def test_where_there_is_no_interval_the_page_says_why(tmp_path):
    make(tmp_path, ["alone", "perfect", "known"], ("evaluate",))
    metrics = json.loads((tmp_path / "metrics/evaluate.json").read_text())
    none = {"iou_low": None, "iou_high": None}
    metrics["city"]["alone"] |= none | {"units": 1}
    metrics["city"]["perfect"] |= none | {"units": 4, "iou": 1.0}
    write(tmp_path / "metrics/evaluate.json", metrics)
    report.run(params_of(["alone", "perfect", "known"]), tmp_path)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert (
        "None is shown of alone: a single test scene" in page
        and "None is shown of perfect: an IoU of 0 or 1" in page
    )


def test_certified_attacked_and_clean_stand_together_and_each_says_what_it_is_of(three):
    found = json.loads((three / "metrics/report/sunnyside.json").read_text())
    mean = json.loads((three / "metrics/report/mean_city.json").read_text())
    for row in (found, mean):
        proof = row["sandwich"]
        assert proof["certified"] < proof["attacked"] < proof["clean"] and "certified" not in row
        assert row["attacked"] < row["attacked_of"] and row["unseen"] < row["unseen_of"]


def test_an_estimate_that_does_not_beat_a_guess_says_so(three, tmp_path):
    make(tmp_path, ["here", "there"], ("generalize",))
    metrics = json.loads((tmp_path / "metrics/generalize.json").read_text())
    metrics["label_free"]["mean_error"] |= {"thresholded": 0.3, "mean_unseen": 0.1}
    write(tmp_path / "metrics/generalize.json", metrics)
    report.run(params_of(["here", "there"]), tmp_path)
    worse, better = (
        (root / "report/index.html").read_text(encoding="utf-8") for root in (tmp_path, three)
    )
    assert "no better than that guess" in worse and "no better than that guess" not in better


def test_names_stay_words_and_nothing_is_loaded(three):
    page = (three / "report/index.html").read_text(encoding="utf-8")
    assert EVIL not in page and "&lt;script&gt;alert" in page
    assert page.count("<script") == 1
    assert "the <people>" not in page and "the &lt;people&gt;" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!#|data:)|@import", page)
    assert "$x_1$ &amp; co" in page  # not set as mathematics


@pytest.mark.parametrize(
    ("stages", "missing"),
    [
        ((), {"answer", "viewer", "unseen", "attack", "certified", "explained", "detail"}),
        (("train",), {"answer", "viewer", "unseen", "attack", "certified", "explained"}),
        (("train", "evaluate"), {"unseen", "attack", "certified", "explained"}),
        (("attack",), {"viewer", "unseen", "certified", "explained", "detail"}),
        (("certify",), {"viewer", "unseen", "attack", "explained", "detail"}),
        (("explain",), {"answer", "viewer", "unseen", "attack", "certified", "detail"}),
        (("generalize",), {"viewer", "attack", "certified", "explained", "detail"}),
        (
            ("incremental",),
            {"answer", "viewer", "unseen", "attack", "certified", "explained", "detail"},
        ),
        (
            ("privacy",),
            {"answer", "viewer", "unseen", "attack", "certified", "explained", "detail"},
        ),
    ],
)
def test_sections_appear_when_their_stage_has_run(tmp_path, stages, missing):
    page = written(tmp_path, ["here", "there"], stages)
    assert sections(page) == (SECTIONS - missing) | ASKED & {*stages}
    assert set(re.findall(r'<a href="#(\w+)"', page)) <= sections(page)


def test_of_the_only_test_scene_nobody_says_that_it_is_found(tmp_path):
    path = make(tmp_path, ["here"], ("privacy",)) / "metrics/privacy.json"
    metrics = json.loads(path.read_text())
    metrics["planted"] |= {"of": 1, "rank": None, "found": None}
    path.write_text(json.dumps(metrics))
    report.run(params_of(["here"]), tmp_path)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "it is the only test scene, and against none is it found or not.</p>" in page
    assert "of 20 test scenes its loss falls most: it is found." in written(
        tmp_path / "more", ["here"], ("privacy",)
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "evaluate.json: not valid JSON"),
        ("{}", "evaluate.json: holds no metrics of the evaluate stage .*; run it again"),
    ],
)
def test_a_damaged_metrics_file_is_one_sentence(tmp_path, content, said):
    make(tmp_path, ["here"], ("evaluate",))
    (tmp_path / "metrics/evaluate.json").write_text(content)
    with pytest.raises(InputError, match=said):
        report.run(params_of(["here"]), tmp_path)
    assert not (tmp_path / "report/index.html").exists()


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b"no picture")], ids=["gone", "cut"]
)
def test_a_missing_or_damaged_picture_is_one_sentence(tmp_path, damage):
    make(tmp_path, ["here"], ("evaluate",))
    damage(tmp_path / "arrays/evaluate/maps/here/here-4.label.png")
    with pytest.raises(InputError, match=r"here-4.label.png: not readable .* pipeline evaluate"):
        report.run(params_of(["here"]), tmp_path)


def test_what_sun_and_air_can_do_has_its_place(three):
    text = (three / "report/index.html").read_text(encoding="utf-8")
    assert "What sun, air and camera can do" in text and "gain, certified" in text
    assert "0.80 of 5" in text and "158°, 49° high" in text


def test_a_damaged_example_of_an_attack_is_one_sentence(tmp_path):
    make(tmp_path, ["here"], ("attack",))
    (tmp_path / "arrays/attack/here.npz").write_bytes(b"no arrays")
    with pytest.raises(InputError, match=r"here.npz: not readable .* pipeline attack"):
        report.run(params_of(["here"]), tmp_path)


def test_each_figure_of_the_page_is_a_file_for_plots(tmp_path):
    make(tmp_path, ["here", "there"])
    report.run(params_of(["here", "there"]), tmp_path)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    drawn = sorted((tmp_path / "figures").rglob("*.svg"))
    assert page.count('role="img"') >= len(drawn)
    assert {path.parent.name for path in drawn} >= {
        "learning", "confidence-and-size", "every-attack", "randomised-smoothing",
        "convex-relaxation", "lipschitz-network", "weather-light-and-camera",
        "adapting-without-labels", "learning-from-few-labels",
    }  # fmt: skip
    for path in drawn:
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_layers_show_the_exact_masks(tmp_path):
    make(tmp_path, ["here"], ("evaluate",))
    shown = pictures(Results(params_of(["here"]), tmp_path))[0]
    layer = Image.open(io.BytesIO(base64.b64decode(shown.layers["truth"].split(",")[1])))
    label = np.asarray(Image.open(tmp_path / f"arrays/evaluate/maps/here/{shown.scene}.label.png"))
    assert layer.size == label.shape[::-1]
    assert np.array_equal(np.asarray(layer)[..., 3] > 0, label == 1)


def test_the_worst_and_the_best_scene_come_first_and_unmeasured_ones_last(tmp_path):
    make(tmp_path, ["here"], ("evaluate",))
    folder = tmp_path / "arrays/evaluate"
    for kind in ("image.jpg", "label.png", "prediction.png", "confidence.png"):
        for i in (0, 1):  # two more scenes, one without a building to score
            shutil.copy(folder / f"maps/here/here-4.{kind}", folder / f"maps/here/here-{i}.{kind}")
    scores = {"here-0": None, "here-1": 0.6, "here-4": 0.3, "here-5": 0.9}
    write(
        folder / "scenes.json",
        [{"city": "here", "scene": s, "iou": iou} for s, iou in scores.items()],
    )
    params = params_of(["here"])
    params = params.model_copy(update={"report": params.report.model_copy(update={"scenes": 4})})
    assert [p.scene for p in pictures(Results(params, tmp_path))] == [
        "here-4",
        "here-5",
        "here-1",
        "here-0",
    ]


def test_times_are_of_this_pipeline_a_row_a_stage(tmp_path):
    runs = [
        ("train", [], 225), *(("train", ["--without", city], 50) for city in "abc"),
        ("train", ["--params", "other.yaml"], 600),
        ("evaluate", ["--model=m", "--out", "o.json"], 400),
    ]  # fmt: skip
    lines = [
        json.dumps(
            {
                "verb": v,
                "arguments": a,
                "seconds": s,
                "finished": "2026-01-01T10:00",
                "hardware": "one core",
            }
        )
        for v, a, s in runs
    ]
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work/runs.jsonl").write_text("\n".join(lines))
    rows = provenance.runs(Results(params_of(["here"]), tmp_path))
    assert [(row["stage"], row["seconds"]) for row in rows] == [("train", 225), ("holdout", 150)]


def test_certificates_and_attacks_are_drawn_as_the_steps_they_are():
    """Between two radii the greater's certificate holds, and the less's attack: nothing in
    between is claimed.
    """
    rows = {
        "1": Sandwich(clean=0.9, attacked=0.8, certified=0.6),
        "2": Sandwich(clean=0.9, attacked=0.7, certified=0.3),
    }
    drawn = charts.sandwich_lines(rows)
    at = {line.name: dict(zip(line.x, line.y, strict=True)) for line in drawn}
    assert at["certified"] == {0: 0.6, 1: 0.6, 2: 0.3} and at["attacked"] == {
        0: 0.9,
        1: 0.8,
        2: 0.7,
    }
    assert {line.name: line.steps for line in drawn[1:]} == {
        "attacked": "steps-post",
        "certified": "steps-pre",
    }


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_what_changed_since_the_commit(tmp_path):
    """The answer's numbers that were there before, with their intervals; of a first run there
    is nothing to say.
    """

    def told() -> str:
        report.run(params_of(["here", "there"]), tmp_path)
        text = (tmp_path / "report/index.html").read_text(encoding="utf-8")
        section = (
            text.split('<section id="changes">')[1] if '<section id="changes">' in text else ""
        )
        return re.sub(r"<[^>]*>|\s+", " ", section.split("</section>")[0])

    make(tmp_path, ["here", "there"], ("evaluate",))
    assert told() == ""
    commit(tmp_path)
    assert "Nothing: the 2 numbers of the answer are those of commit" in told()
    metrics = json.loads((tmp_path / "metrics/evaluate.json").read_text())
    metrics["city"]["here"]["iou"] -= 0.25
    metrics["city"]["here"]["size"]["0-50"]["buildings"] = 1000  # no headline
    write(tmp_path / "metrics/evaluate.json", metrics)
    (row,) = changes(Results(params_of(["here", "there"]), tmp_path)).rows
    assert (row.kind, row.city, row.beyond) == ("seen", "here", True)
    assert row.after.iou - row.before.iou == pytest.approx(-0.25)
    assert (
        "of 2 numbers of the answer 1;" in told() and "-0.250" in told() and "0.74–0.85" in told()
    )
    del metrics["city"]["here"], metrics["city"]["there"]
    write(tmp_path / "metrics/evaluate.json", metrics | {"city": {"elsewhere": {"iou": 0.5}}})
    assert told() == "", "other cities have no number to have changed from"


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_a_commit_with_damaged_metrics_is_one_sentence(tmp_path):
    make(tmp_path, ["here"], ("evaluate",))
    (tmp_path / "metrics/attack.json").write_text("<<<<<<< HEAD")
    commit(tmp_path)
    (tmp_path / "metrics/attack.json").unlink()
    with pytest.raises(
        InputError,
        match=r"metrics/attack.json in the last commit is not valid "
        r"JSON",
    ):
        changes(Results(params_of(["here"]), tmp_path))


def test_an_attacked_tile_is_shown_clean_attacked_and_erased_with_what_is_left_of_it(three):
    page = (three / "report/index.html").read_text(encoding="utf-8")
    tile = page.split('class="fooled"')[1].split('class="fooled"')[0]
    assert re.findall(r'data-state="(\w+)"', tile) == ["clean", "attacked", "erased"]
    ious = re.findall(r"</b>: IoU ([\d.]+)", tile)
    # of the factory's maps: the label, its opposite, nothing
    assert ious == ["1.00", "0.00", "0.00"]
    assert all(' alt="' in image for image in re.findall(r"<img[^>]*>", page))


def test_numbers_and_scenes_are_given_along(three):
    import geopandas

    page = (three / "report/index.html").read_text(encoding="utf-8")
    given = dict(re.findall(r'<a download="([\w.]+)" href="data:[^"]*base64,([^"]+)"', page))
    rows = base64.b64decode(given["numbers.csv"]).decode().splitlines()
    assert rows[0] == "city,kind,iou,low,high,of" and any(
        row.startswith("sunnyside,seen,0.8,") for row in rows
    )
    (three / "scenes.gpkg").write_bytes(base64.b64decode(given["scenes.gpkg"]))
    scenes = geopandas.read_file(three / "scenes.gpkg")
    assert len(scenes) == 18 and scenes.set_index("scene").iou["sunnyside-5"] == pytest.approx(0.85)


@pytest.fixture(scope="module")
def chromium():
    program = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not program:
        pytest.skip("no Chromium to open the page in")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def opened(chromium, request):
    """A function that opens a report and gives its page, the messages of its
    console and its requests.
    """
    width, height = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": height}, has_touch=width < 500
    )

    def open_page(path: Path):
        page, noise = context.new_page(), []
        page.on("console", lambda m: noise.append(m.text))
        page.on("pageerror", lambda e: noise.append(str(e)))
        page.on("dialog", lambda d: (noise.append("a dialog"), d.dismiss()))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:")) else noise.append(r.url),
        )
        page.goto((path / "report/index.html").as_uri())
        return page, noise

    yield open_page
    context.close()


def test_the_viewer_works_and_the_page_is_silent(opened, three):
    page, noise = opened(three)
    for section in SECTIONS:
        assert page.locator(f"section#{section}").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
        "the page scrolls sideways"
    )

    shown = page.locator(".scene.shown")
    for layer in ("truth", "prediction", "errors", "confidence"):
        page.click(f"button[data-layer={layer}]")
        assert shown.locator(".layer:visible").get_attribute("data-layer") == layer
    page.click("button[data-layer=photo]")
    assert shown.locator(".layer:visible").count() == 0 and shown.locator(".photo").is_visible()

    def scale() -> float:
        return shown.locator(".canvas").evaluate(
            "e => new DOMMatrix(getComputedStyle(e).transform).a"
        )

    assert scale() == 1
    page.click("button[data-zoom=in]")
    assert scale() == pytest.approx(1.5)
    shown.locator(".spot").first.click()
    # a tile of 64 of the scene's 256 pixels fills the frame
    assert scale() == pytest.approx(0.9 * 256 / 64, rel=0.02)
    page.click("button[data-zoom=fit]")
    assert scale() == 1

    shown.locator(".frame").focus()
    page.keyboard.press("2")
    assert shown.locator(".layer:visible").get_attribute("data-layer") == "truth"
    page.keyboard.press("+")
    assert scale() > 1
    page.keyboard.press("n")
    assert shown.get_attribute("id") == "scene-1" and scale() == 1

    page.locator(".swipe").fill("50")
    assert "50%" in shown.locator(".layer:visible").evaluate("e => e.style.clipPath")
    page.locator("#map a").nth(2).evaluate(
        "a => a.dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    page.wait_for_function("document.querySelector('.scene.shown').id === location.hash.slice(1)")
    page.click("button[data-step='1']")
    page.locator("#map a").nth(2).evaluate(
        "a => a.dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert shown.get_attribute("id") == page.evaluate("location.hash.slice(1)"), (
        "a second click chooses it again"
    )
    assert noise == []


def test_a_slider_goes_from_the_clean_tile_to_the_erased_one_and_dark_pages_are_dark(opened, three):
    page, noise = opened(three)
    first = page.locator(".fooled").first
    slider, said = first.locator("input"), first.locator("output")
    for value, name in (("0", "clean"), ("100", "attacked"), ("200", "erased")):
        slider.fill(value)
        assert said.inner_text().startswith(name)
    assert first.locator(".fooling img").nth(2).evaluate("e => e.style.clipPath") in (
        "inset(0px)",
        "inset(0px 0% 0px 0px)",
    )
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert noise == []


def test_a_jump_lands_where_it_says(opened, three):
    page, _ = opened(three)
    page.add_style_tag(content="html { scroll-behavior: auto !important }")
    page.click("nav a[href='#certified']")
    page.wait_for_timeout(300)
    assert (
        abs(page.evaluate("document.getElementById('certified').getBoundingClientRect().top")) < 60
    )


@pytest.fixture(scope="module", params=[1, pytest.param(40, marks=pytest.mark.slow)])
def few_or_many(request, tmp_path_factory) -> tuple[Path, int]:
    root = tmp_path_factory.mktemp("cities")
    written(root, [f"city-{i}" for i in range(request.param)])
    return root, request.param


def test_one_city_and_forty_fit_the_page(opened, few_or_many):
    root, count = few_or_many
    page, noise = opened(root)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("table.answer tbody tr").count() == count
    assert page.locator("table.answer tbody tr:visible").count() == min(count, 12)
    assert page.evaluate("document.documentElement.scrollHeight") < 24000, (
        "more than a reader scrolls through"
    )
    assert page.locator(".thumb").count() == 2 * count
    assert noise == [] and (root / "report/index.html").stat().st_size < 15e6


def test_a_failed_audit_is_red_and_ends_the_report_once_it_is_written(tmp_path):
    make(tmp_path, ["sunnyside"])
    metrics = json.loads((tmp_path / "metrics/attack.json").read_text())
    write(
        tmp_path / "metrics/attack.json",
        metrics | {"audit": {"vanishes": False, "within_budget": True}},
    )
    with pytest.raises(AuditFailed, match="vanishes.*attack.json"):
        report.run(params_of(["sunnyside"]), tmp_path)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert page.count('class="alarm"') == 2 and CHECKS["vanishes"] in page
    assert (tmp_path / "metrics/report/sunnyside.json").exists()


def nothing(tree: object) -> object:
    """The same with null in the place of every number."""
    return {key: nothing(value) for key, value in tree.items()} if isinstance(tree, dict) else None


def blanked(tree: dict, city: str) -> dict:
    """Metrics of which every number under a city's name is null, as where its
    labels know no building.
    """
    return {
        k: nothing(v) if k == city else blanked(v, city) if isinstance(v, dict) else v
        for k, v in tree.items()
    }


def test_a_city_without_buildings_is_dashes_and_in_no_mean(tmp_path):
    cities = ["town", "field"]
    make(tmp_path, cities)
    for stage in ("evaluate", "attack", "certify", "generalize"):
        path = tmp_path / f"metrics/{stage}.json"
        metrics = blanked(json.loads(path.read_text()), "field")
        if stage == "generalize":
            for table in (
                metrics["city"],
                metrics["label_free"]["city"],
                metrics["robustness"]["city"],
            ):
                del table["field"]
        write(path, metrics)
    report.run(params_of(cities), tmp_path)
    rows = {
        path.stem: json.loads(path.read_text()) for path in (tmp_path / "metrics/report").iterdir()
    }
    assert set(rows) == {"town", "mean_city"} and rows["mean_city"] == rows["town"]
    assert (
        "nan"
        not in (tmp_path / "report/index.html")
        .read_text(encoding="utf-8")
        .lower()
        .split("<style>")[0]
    )


def test_several_classes_have_an_iou_each(tmp_path):
    make(tmp_path, ["town", "field"], ("evaluate",))
    path = tmp_path / "metrics/evaluate.json"
    metrics = json.loads(path.read_text())
    metrics["city"]["town"]["class_iou"] = {"1": 0.123, "2": None}
    write(path, metrics)
    report.run(params_of(["town", "field"]), tmp_path)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert (
        all(f'<th scope="col">IoU of class {k}</th>' in page for k in (1, 2))
        and "<td>0.123</td><td>–</td>" in page
    )
