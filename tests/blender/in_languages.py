"""Runs in a Blender executable, which has its languages where the bpy wheel has none: what it shows of our texts.

    blender -b --factory-startup --python in_languages.py -- REPORT

The repository is loaded as a plain package, because the executable may be older than extensions.
"""

import importlib.util
import json
import sys
from pathlib import Path

import bpy

ROOT = Path(__file__).resolve().parents[2]
LABELS = (("Finished Jobs", "*"), ("Generate 3D Object", "Operator"), ("Draft", "*"), ("{} s left", "*"))


def main(report: str) -> None:
    spec = importlib.util.spec_from_file_location("im3d", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    package = importlib.util.module_from_spec(spec)
    sys.modules["im3d"] = package
    spec.loader.exec_module(package)
    bpy.context.preferences.addons.new().module = "im3d"
    package.register()
    view, translations = bpy.context.preferences.view, bpy.app.translations
    view.use_translate_interface = True
    shown = {}
    for language in translations.locales:
        if language.split("_")[0] in ("de", "es", "fr", "ja", "zh"):
            view.language = language
            shown[language] = [translations.pgettext_iface(*label) for label in LABELS]
    package.unregister()
    shown["after"] = [translations.pgettext_iface(*label) for label in LABELS]
    Path(report).write_text(json.dumps(shown), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[-1])
