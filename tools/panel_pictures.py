"""Makes docs/images/panel_*.png: the panel in a real Blender window, photographed and cropped.

python tools/panel_pictures.py JOBS      # a folder of finished jobs; needs blender and xvfb-run on the PATH
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
WINDOW = (1280, 1000)
SIDEBAR = (820, 80, 1054, 900)  # of the window at Blender's default layout
COLORS = 200


def main(jobs: str) -> None:
    width, height = WINDOW
    with tempfile.TemporaryDirectory() as folder:
        command = ["xvfb-run", "-a", "-s", f"-screen 0 {width}x{height}x24", "blender", "--factory-startup"]
        command += ["--enable-event-simulate", "--window-geometry", "0", "0", str(width), str(height)]
        command += ["--python", str(ROOT / "tools" / "screenshot_panel.py"), "--", jobs, folder]
        subprocess.run(command, check=True, timeout=180, stdout=subprocess.DEVNULL)
        for path in sorted(Path(folder).glob("panel_*.png")):
            with Image.open(path) as picture:
                whole = picture.convert("RGB")
            shown = whole if path.stem == "panel_running" else whole.crop(SIDEBAR)
            shown.quantize(COLORS, dither=Image.Dither.NONE).save(IMAGES / path.name, optimize=True)
            print(IMAGES / path.name)


if __name__ == "__main__":
    main(sys.argv[1])
