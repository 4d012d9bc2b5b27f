"""`im3d serve`: jobs received as messages on stdin, answered on stdout (see `im3d.shared.protocol`)."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--idle-minutes", type=float, default=0.0, metavar="N",
                        help="free memory after N idle minutes (default: 0, never)")  # fmt: skip
    parser.add_argument("--remote", action="store_true",
                        help="for a client on another machine, over ssh: paths are relative to one folder")  # fmt: skip
    parser.add_argument("--files", action="store_true",
                        help="transfer such a client's files instead of serving jobs")  # fmt: skip
    parser.add_argument("--blender", metavar="FILE", help="Blender executable, where bpy is not installed")


def run(args: argparse.Namespace) -> int:
    from im3d.service.server import serve, worker_command
    from im3d.shared.paths import home_folder

    folder = home_folder() / "remote"
    if args.files:
        from im3d.service.remote_files import serve_files
        from im3d.shared.pipes import incoming, own_stdout

        return serve_files(folder, incoming(), own_stdout())
    remote = folder if args.remote else None
    return serve(worker_command(args.blender), 60 * args.idle_minutes, remote)
