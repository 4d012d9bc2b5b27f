"""Renders the examples from the pack of furniture: `python examples/make_examples.py furniture_780.npz.xz`.

CC0 props of the test split, which no generator was trained on, albedo without lights: orbits of 16 views, and single
pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from im3d.core.images import OrbitViews, write_png, write_views
from im3d.core.orbit import DEFAULT_FOV_DEG, Orbit
from im3d_lab.evaluate.cycles import RenderJob, load_views, render_views
from im3d_lab.packs import Pack, split_of

SIZE = 256
# Folder → (id in the pack, elevation in degrees, distance that keeps the object inside the picture).
EXAMPLES = {
    "playhouse": ("BlendSwap-CC-0/blendswap-cc-0/childHut/childHut.obj", 20.0, 2.2),
    "football_table": ("BlendSwap-CC-0/blendswap-cc-0/table_football/table_football.obj", 25.0, 2.2),
    "yogurt_bottle": ("BlendSwap-CC-0/blendswap-cc-0/yogurtBottle/yogurtBottle.obj", 10.0, 2.0),
}
# Picture → id in the pack, seen from the front and a little from the side and above.
PICTURES = {
    "playhouse": "BlendSwap-CC-0/blendswap-cc-0/childHut/childHut.obj",
    "cabinet": "BlendSwap-CC-0/blendswap-cc-0/televisionCabinet/televisionCabinet.obj",
    "refrigerator": "BlendSwap-CC-0/blendswap-cc-0/refrigerator/refrigerator.obj",
}
PICTURE_SIZE = 512
PICTURE_ANGLES_DEG = -35.0, 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    props = {prop.id: prop for prop in Pack.open(args.pack)}
    jobs, orbits = [], []
    for id_, elevation, radius in EXAMPLES.values():
        prop = props[id_]
        assert split_of(prop) == "test", id_
        assert prop.licence.startswith("CC0"), prop.licence
        orbits.append(Orbit.uniform(16, elevation, DEFAULT_FOV_DEG, radius))
        jobs.append(RenderJob(prop, orbits[-1].cameras(SIZE)))
    for name, orbit, folder in zip(EXAMPLES, orbits, render_views(jobs), strict=True):
        views = OrbitViews(load_views(folder), orbit)
        border = max(views.rgba[:, i, :, 3].max() for i in (0, -1)), max(views.rgba[:, :, i, 3].max() for i in (0, -1))
        assert max(border) < 0.01, f"{name} touches the border"
        write_views(args.out / name, views)
    azimuth, elevation = PICTURE_ANGLES_DEG
    camera = Orbit((azimuth, azimuth + 180), elevation, DEFAULT_FOV_DEG, 2.2).cameras(PICTURE_SIZE)[:1]
    folders = render_views([RenderJob(props[id_], camera) for id_ in PICTURES.values()])
    for name, folder in zip(PICTURES, folders, strict=True):
        write_png(args.out / f"{name}.png", load_views(folder)[0])


if __name__ == "__main__":
    main()
