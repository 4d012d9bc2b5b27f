"""Writes what the installer fetches: one lock for each platform and build of torch, and `builds.toml` about them.

    python tools/lock.py            # needs uv on the PATH; keeps the versions of the present locks
    python tools/lock.py --upgrade  # takes the newest ones

Run it when pyproject.toml or requirements.txt changes, and try the installer afterwards. A lock is complete: every
wheel that is installed stands in it with its hash. torch for other accelerators is not in the package index but in that
of its makers, which may be out of reach where this runs. For the builds in `HASHES` others read it and published the
hash: two who agree, independent of each other, are asked for. For those in `UNHASHED` the installer takes torch as its
makers give it, over TLS.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "im3d_blender" / "install" / "locks"
UV = "uv==0.13.9"
PYTHON = (3, 11)
MEGABYTE = 1e6
# As uv calls the platforms. glibc 2.28 is what torch's own wheels ask for.
PLATFORMS = {
    "linux-x86_64": "x86_64-manylinux_2_28",
    "windows-x86_64": "x86_64-pc-windows-msvc",
    "macos-arm64": "aarch64-apple-darwin",
}
TAGS = {
    "linux-x86_64": [*(f"manylinux_2_{n}_x86_64" for n in range(28, 4, -1)), "manylinux2014_x86_64",
                     "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"],
    "windows-x86_64": ["win_amd64"],
    "macos-arm64": list(mac_platforms((14, 0), "arm64")),
}  # fmt: skip
# Which build of torch the package index has for a platform; the others come from its makers' index.
INDEXED = {"linux-x86_64": "cu130", "windows-x86_64": "cpu", "macos-arm64": "mps"}
# torch for the processor on Linux: SHA-256 and megabytes. Seen in the redistribution audit of GreenPandaStudios'
# aug-pytorch (download and published hash) and in a training log's instructions, which agree.
HASHES = {
    "linux-x86_64-cpu": ("2.14.1+cpu", "5e38154c8896d426a5df58bf2276b603e82184dfae4f54d77dbb212f36e34f37", 196.2),
}
# Megabytes of torch and what only it needs, roughly: nobody's hashes of these could be had.
UNHASHED = {"linux-x86_64-cu126": 2500.0, "windows-x86_64-cu126": 2600.0, "windows-x86_64-cu130": 2600.0}
# What lpips asks for and the backend does without: its weights are read, its network is not.
UNUSED = ("torchvision",)
# What only torch's build for NVIDIA cards brings along, and what only works on them.
FOR_CUDA = ("nvidia-", "cuda-", "triton")
FOR_NVIDIA = ("warp-lang",)
# Gigabytes that must be free: the downloads, unpacked, and room for models and jobs.
SPACE = {"cu126": 14, "cu130": 14, "cpu": 5, "mps": 5}

Package = dict[str, Any]


def resolve(platform: str, constraints: str) -> list[Package]:
    """The packages of the backend on a platform, each with its name, version, hash and size.

    Args:
        constraints: Requirements that hold if the packages are needed.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "constraints.txt").write_text(constraints, encoding="utf-8")
        lock = Path(folder) / "pylock.toml"
        command = ["uv", "--no-config", "pip", "compile", "pyproject.toml", "-c", "requirements.txt"]
        command += ["-c", str(Path(folder) / "constraints.txt"), "--python-platform", PLATFORMS[platform]]
        command += ["--python-version", ".".join(map(str, PYTHON)), "--only-binary", ":all:"]
        command += ["--format", "pylock.toml", "--quiet", "-o", str(lock)]
        # torch's wheels for macOS need 14, more than uv assumes.
        subprocess.run(command, cwd=ROOT, env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}, check=True)
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    tags = supported_tags(platform)
    return [best(package, tags) for package in packages if package["name"] not in UNUSED]


def supported_tags(platform: str) -> dict[Tag, int]:
    """The tags of wheels that a platform runs, with their rank: the first is the best."""
    tags = [*cpython_tags(PYTHON, platforms=TAGS[platform])]
    tags += compatible_tags(PYTHON, f"cp{PYTHON[0]}{PYTHON[1]}", TAGS[platform])
    return {tag: rank for rank, tag in enumerate(tags)}


def best(package: Package, tags: dict[Tag, int]) -> Package:
    """A package with the one wheel of it that suits the platform best."""

    def rank(wheel: Package) -> int:
        name = wheel["url"].rsplit("/", 1)[-1]
        return min((tags[tag] for tag in parse_wheel_filename(name)[3] if tag in tags), default=len(tags))

    wheel = min(package["wheels"], key=rank)
    assert rank(wheel) < len(tags), f"{package['name']} has no wheel for this platform"
    return {"name": package["name"], "version": package["version"], "hash": wheel["hashes"]["sha256"],
            "size": wheel["size"]}  # fmt: skip


def write(platform: str, accelerator: str, packages: list[Package]) -> str:
    """Writes one lock and returns its table for `builds.toml`."""
    name = f"{platform}-{accelerator}"
    (torch,) = (package for package in packages if package["name"] == "torch")
    facts = {}
    megabytes = 0.0
    if accelerator != INDEXED[platform]:
        packages = [p for p in packages if p["name"] != "torch" and not p["name"].startswith(FOR_CUDA)]
        facts["torch_backend"] = f'"{accelerator}"'
        if name in HASHES:
            version, digest, megabytes = HASHES[name]
            assert version.startswith(f"{torch['version']}+"), "HASHES has another torch"
            packages.append({"name": "torch", "version": version, "hash": digest, "size": 0})
        else:
            facts["unhashed"] = f'"torch=={torch["version"]}"'
            megabytes = UNHASHED[name]
    if not accelerator.startswith("cu"):
        packages = [package for package in packages if package["name"] not in FOR_NVIDIA]
    packages = sorted(packages, key=lambda package: package["name"])
    lines = [f"{p['name']}=={p['version']} --hash=sha256:{p['hash']}" for p in packages]
    (LOCKS / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    megabytes += sum(package["size"] for package in packages) / MEGABYTE
    facts |= {"download_mb": f"{megabytes:.0f}", "space_gb": str(SPACE[accelerator])}
    return "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in facts.items())])


def lock_uv() -> None:
    """Fixes uv itself, for all platforms."""
    command = ["uv", "--no-config", "pip", "compile", "-", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--universal", "--no-emit-index-url", "--quiet", "-o", str(LOCKS / "uv.txt")]
    subprocess.run(command, cwd=ROOT, input=UV, text=True, check=True)


def present_versions() -> str:
    """What the present locks hold, as constraints."""
    lines = {line.split()[0] for lock in LOCKS.glob("*-*.txt") for line in lock.read_text().splitlines()}
    return "\n".join(sorted(pin for pin in lines if not pin.startswith("torch==")))


def main() -> None:
    constraints = "" if "--upgrade" in sys.argv[1:] else present_versions()
    tables = ["# What `tools/lock.py` found out about each lock; it writes this file too."]
    others = [*HASHES, *UNHASHED]
    lock_uv()
    for platform, indexed in INDEXED.items():
        packages = resolve(platform, constraints)
        for name in (f"{platform}-{indexed}", *(other for other in others if other.startswith(platform))):
            tables.append(write(platform, name.removeprefix(f"{platform}-"), packages))
            print(LOCKS / f"{name}.txt")
    (LOCKS / "builds.toml").write_text("\n\n".join(tables) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
