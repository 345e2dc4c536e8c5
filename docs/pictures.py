"""Makes the pictures of comparison.md: screenshots of both pages, and the PNG files that `compare` writes.

    python docs/pictures.py

Needs the project's [tf,rtx,cpu,compare] extras and an installed Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def make(images: Path, scratch: Path) -> None:
    """Converts and compares the demo model as the page says, and keeps the pictures in `images`."""
    import numpy as np

    from rewriter.cli import main
    from rewriter.demo import digits_path, load_digits_test
    from tests.chromium import Browser, Screen

    model, artifact = digits_path(), scratch / "my_model_bf16"
    typical = scratch / "typical.npz"
    np.savez(typical, image=load_digits_test()[0][:64])
    pictures, pages = scratch / "pictures", {name: scratch / f"{name}.html" for name in ("report", "comparison")}
    shapes = "image:1x8x8,8x8x8,64x8x8"
    compared = [
        "--inputs",
        str(typical),
        "--top-k",
        "3",
        "--pictures",
        str(pictures),
        "--html",
        str(pages["comparison"]),
    ]
    for line in (
        ["convert", str(model), "-o", str(artifact), "--precision-mode", "bf16", "--shapes", shapes],
        ["inspect", str(artifact), "--html", str(pages["report"])],
        ["compare", str(model), str(artifact), *compared],
    ):
        if main(line):
            raise SystemExit(f"Error: trt-rewriter {line[0]} failed")
    for kind in ("histogram", "heatmap"):
        shutil.copy(pictures / f"native-emulated.probabilities.{kind}.png", images / f"{kind}.png")
    with Browser() as browser, browser.page(Screen(1100, 1240)) as page:
        page.open(pages["report"])
        page.settle()
        (images / "report.png").write_bytes(page.screenshot())


if __name__ == "__main__":
    target = ROOT / "docs" / "images"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        make(target, Path(folder))
