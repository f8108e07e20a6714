"""The README's two pictures, taken of report/index.html: `python -m
benchmarks.readme_pictures`, after `make`.
"""

import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.ratio import arguments_of

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking "
    "--disable-component-update --disable-sync"
)


def take(page_file: Path, folder: Path) -> None:
    """FOLDER/report.jpg, the top of the page, and FOLDER/viewer.jpg, the errors
    of the hardest scene.
    """
    folder.mkdir(exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto(page_file.resolve().as_uri())
        answer = page.locator("#answer").bounding_box()
        top = {"x": 0, "y": 0, "width": 1180, "height": answer["y"] + answer["height"]}
        save(page.screenshot(clip=top, full_page=True), folder / "report.jpg")
        page.locator(".swipe").fill("35")
        page.locator(".swipe").blur()
        page.add_style_tag(content=".keys { display: none !important }")
        page.set_viewport_size({"width": 820, "height": 1000})
        page.evaluate("scrollTo(0, 0)")  # boxes are measured from the window's corner
        box = page.locator("#viewer").bounding_box()
        save(
            page.screenshot(clip=box | {"x": 0, "width": 820}, full_page=True),
            folder / "viewer.jpg",
        )
        browser.close()


def save(png: bytes, path: Path) -> None:
    Image.open(BytesIO(png)).convert("RGB").save(path, quality=85, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    arguments.add_argument("page", type=Path, nargs="?", default=Path("report/index.html"))
    take(arguments.parse_args().page, Path("docs"))
