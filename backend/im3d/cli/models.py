"""`im3d models`: lists, licences, downloads and checks the models of models.toml."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from im3d.core.storage import require_file
from im3d.errors import InputError, ModelError
from im3d.models import catalog as models
from im3d.models.catalog import Model, find_model
from im3d.shared.paths import models_folder


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="list all models and whether they are installed")
    listing.add_argument("--json", action="store_true", help="print one JSON object")

    licence = actions.add_parser("licence", help="show a model's licence, or accept it")
    licence.add_argument("name", metavar="NAME")
    licence.add_argument("--accept", action="store_true", help="record that you have read and accepted it")

    download = actions.add_parser("download", help="install models from the hub or from local files")
    download.add_argument("names", metavar="NAME", nargs="+")
    download.add_argument("--from", dest="source", metavar="PATH", help="local file or folder instead of the hub")
    download.add_argument("--accept-licence", action="store_true", help="accept the licence without a question")
    download.add_argument("--json", action="store_true", help="print one JSON object, last on stdout")

    check = actions.add_parser("verify", help="compare installed files with their hashes")
    check.add_argument("names", metavar="NAME", nargs="*", help="default: all that are installed")
    check.add_argument("--json", action="store_true", help="print one JSON object, last on stdout")


def run(args: argparse.Namespace) -> int:
    actions = {"list": _list, "licence": _licence, "download": _download, "verify": _verify}
    return actions[args.action](args)


def describe(model: Model) -> dict[str, Any]:
    """What `models list --json` says of a model."""
    return {
        "name": model.name,
        "title": model.title,
        "purpose": model.purpose,
        "bytes": model.bytes,
        "vram_gb": model.vram_gb,
        "licence": model.licence,
        "licence_url": model.licence_url,
        "commercial": model.commercial,
        "gated": model.gated,
        "page": model.page,
        "licence_accepted": models.licence_accepted(model.name),
        "installed": models.installed(model.name) is not None,
        "folder": str(model.folder),
    }


def _list(args: argparse.Namespace) -> int:
    facts = [describe(model) for model in models.models().values()]
    if args.json:
        print(json.dumps({"models": facts}))
        return 0
    row = "{:<14} {:<6} {:>8} {:>7}  {:<11} {:<10} {}"
    print(row.format("name", "for", "size", "memory", "commercial", "installed", "title"))
    for model, fact in zip(models.models().values(), facts, strict=True):
        state, memory = "yes" if fact["installed"] else "no", f"{model.vram_gb:g} GB"
        print(row.format(model.name, model.purpose, model.size, memory, model.commercial, state, model.title))
    print(
        "\norbit: views from a picture; image: a picture from a sentence; mask: tells the object from its background;\n"
        "loss: compares renders with views while splats are fitted."
    )
    print(f"Get one with: im3d models download NAME. They are kept in {models_folder()} (IM3D_HOME moves it).")
    return 0


def _licence(args: argparse.Namespace) -> int:
    model = find_model(args.name)
    print(models.licence_text(model))
    if args.accept:
        models.accept_licence(model.name)
    print(f"  accepted:       {'yes' if models.licence_accepted(model.name) else 'no'}")
    return 0


def _download(args: argparse.Namespace) -> int:
    from im3d.models.hub import download, install_local

    chosen = [find_model(name) for name in args.names]
    if args.source is not None and len(chosen) > 1:
        raise InputError("--from holds the files of one model.", "Install the models one after another.")
    if args.source is not None and not Path(args.source).exists():
        raise InputError(f"{args.source} does not exist.", "Check the path.")
    if args.source is not None and not Path(args.source).is_dir():
        require_file(Path(args.source), "the model's file or folder")
    for model in chosen:
        _consent(model, args.accept_licence)
    for model in chosen:
        with _Bar(model.name, "MiB" if args.source is None else "file") as bar:
            if args.source is None:
                download(model.name, bar)
            else:
                install_local(model.name, Path(args.source), bar)
    if args.json:
        print(json.dumps({"status": "done", "models": [describe(model) for model in chosen]}))
    else:
        for model in chosen:
            files = models.installed_files(model.folder)
            unchecked = [f.path for f in files if f.checked == "nothing"]
            by_hub = [f.path for f in files if f.checked == "hub"]
            print(f"{model.name} is installed in {model.folder}")
            if unchecked:
                print(f"note: no published hash is known for {', '.join(unchecked)}; your copy's was recorded.")
            if by_hub:
                print(f"note: compared with the hashes that the hub itself lists: {', '.join(by_hub)}.")
    return 0


def _verify(args: argparse.Namespace) -> int:
    names = args.names or [name for name in models.models() if models.installed_files(find_model(name).folder)]
    if not names and not args.json:
        print("No model is installed. What there is: im3d models list")
    problems: dict[str, list[str]] = {}
    for name in names:
        with _Bar(name, "file") as bar:
            problems[name] = models.verify(name, bar)
    damaged = [name for name, found in problems.items() if found]
    if not args.json:
        for name, found in problems.items():
            print(f"{name}: {' '.join(found) or 'unchanged since it was installed'}")
    if damaged:
        raise ModelError(
            f"{', '.join(damaged)} is damaged: {' '.join(problems[damaged[0]])}",
            "Download it again.",
            f"download {damaged[0]}",
        )
    if args.json:
        print(json.dumps({"status": "done", "verified": names}))
    return 0


def _consent(model: Model, given: bool) -> None:
    """Shows the licence once, before the first byte.

    Raises:
        ModelError: It was declined, or there is no terminal to ask on.
    """
    if models.installed(model.name) or models.licence_accepted(model.name):
        return
    print(models.licence_text(model), file=sys.stderr)
    if not given and sys.stdin.isatty():
        print("Have you read it, and do you accept it? [y/N] ", end="", file=sys.stderr, flush=True)
        given = sys.stdin.readline().strip().lower() in {"y", "yes"}
    if given:
        models.accept_licence(model.name)
    models.require_licence(model)


class _Bar:
    """A `Progress` as a bar on stderr."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, step: int, steps: int, preview: object = None) -> None:
        if self._bar is None:
            self._bar = tqdm(total=steps, desc=self._title, unit=self._unit, file=sys.stderr, initial=step)
        self._bar.update(step - self._bar.n)
