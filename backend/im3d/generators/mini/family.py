"""What choose.py needs to know of `mini`."""

from __future__ import annotations

from pathlib import Path

from im3d.generators.base import Family, Generator, GeneratorInputs


def _build(name: str, inputs: GeneratorInputs) -> Generator:
    from im3d.generators.mini.generator import MiniGenerator

    settings = inputs.settings.mini
    return MiniGenerator(inputs.device, settings.steps, settings.views, inputs.elevation_deg)


def _weights(name: str) -> Path:
    from im3d.generators.mini.generator import mini_weights

    return mini_weights()


FAMILY = Family(("mini",), _build, _weights)
