"""The pictures of docs/viewer.md: a viewer in a browser's window and on a phone.

    python -m tools.viewer_picture ct_view.html        # -> docs/viewer.png, docs/viewer_phone.png

The viewer is one that `uniseg infer --view` has written. Needs chromium (apt-get install chromium). Each colour of the
pictures has 32 steps, so that the files stay small.
"""

import argparse
import base64
import sys
import tempfile
from pathlib import Path

from tools.chromium import Browser
from uniseg.machine.files import atomic_write

DOCS = Path(__file__).resolve().parents[1] / "docs"
WINDOWS = {"viewer.png": (1280, 800, False), "viewer_phone.png": (390, 844, True)}      # pixels; with touch
FEWER_COLOURS = """new Promise((done, fail) => {
  const picture = new Image();
  picture.onerror = fail;
  picture.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    pixels.data.forEach((value, n) => { pixels.data[n] = Math.round(value / 255 * 31) / 31 * 255; });
    context.putImageData(pixels, 0, 0);
    done(canvas.toDataURL("image/png").split(",")[1]);
  };
  picture.src = "data:image/png;base64,%s";
})"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.viewer_picture", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("view", type=Path, metavar="VIEW.html")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        shots = {}
        for name, (width, height, touch) in WINDOWS.items():
            browser.size(width, height, touch)
            browser.open(args.view, "document.body.classList.contains('ready')")
            browser.painted()
            shots[name] = browser.screenshot()
        browser.call("Page.navigate", url="about:blank")   # a page without a policy
        browser.wait("location.href === 'about:blank' && document.readyState === 'complete'")
        for name, shot in shots.items():
            with atomic_write(DOCS / name) as temporary:
                temporary.write_bytes(base64.b64decode(browser.evaluate(FEWER_COLOURS % shot)))
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
