"""`im3d cutout`: the object of a picture without its background, as a job would cut it out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="picture of the object")
    parser.add_argument("--out", required=True, metavar="PNG", help="where to write the cut-out, with alpha")
    parser.add_argument("--mask", metavar="FILE", help="foreground mask of the picture; white is the object")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to compute")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last on stdout")


def run(args: argparse.Namespace) -> int:
    """Writes the cut-out; with `--json` says {status, path, method, warnings}."""
    import numpy as np

    from im3d.core.devices import choose_device
    from im3d.core.images import read_image, write_png
    from im3d.core.storage import make_folder
    from im3d.views.isnet import installed_isnet
    from im3d.views.masks import isolate, read_mask

    picture = read_image(Path(args.image))
    mask = read_mask(Path(args.mask), picture.shape) if args.mask else None
    cut = isolate(picture, mask, installed_isnet(choose_device(args.device)))
    out = Path(args.out).absolute()
    make_folder(out.parent)
    # Blender's previews add what is under full transparency to what they are drawn on.
    write_png(out, np.where(cut.rgba[..., 3:] >= 0.5 / 255, cut.rgba, np.float32(0)))
    if args.json:
        facts = {"status": "done", "path": str(out), "method": cut.method, "warnings": cut.warnings}
        print(json.dumps(facts, ensure_ascii=False), flush=True)
    else:
        print(f"{out} (by {cut.method})")
        for warning in cut.warnings:
            print(f"note: {warning}")
    return 0
