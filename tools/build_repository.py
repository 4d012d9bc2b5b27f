"""Builds a static extension repository: a folder to put on any web server, from which Blender installs and updates.

index.json            what Blender reads: the address to add under Preferences › Get Extensions › Repositories
index.html            a page whose link is dragged into Blender's window
im3d-<version>.zip    the extension; versions that already lie in the folder stay on offer
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from build_zip import ROOT, blender_ext, build

# Blender's tool fills in ${body}, the table of extensions with their links, and ${date}.
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>IM-3D for Blender</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 3rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
th, td { padding: .4rem .8rem .4rem 0; text-align: left; border-bottom: 1px solid #ccc; }
td a { font-weight: bold; }
</style>
</head>
<body>
<h1>IM-3D for Blender</h1>
<p>Drag the link in the column ID into the window of Blender 4.2 or newer. Blender asks to add this repository and to
install the extension; with the repository it also finds updates. Or download the file and choose it in Blender's
preferences under <i>Get Extensions</i>, <i>Install from Disk</i>.</p>
${body}
<p>Built ${date} UTC.</p>
</body>
</html>
"""


def build_repository(out: Path) -> Path:
    """Builds the zip and the listing into `out` and returns the path of index.json.

    Raises:
        subprocess.CalledProcessError: Blender's tool refused the sources or the folder.
    """
    build(out)
    tool, _ = blender_ext()
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "page.html"
        template.write_text(PAGE, encoding="utf-8")
        command = [sys.executable, str(tool), "server-generate", f"--repo-dir={out}"]
        subprocess.run([*command, "--html", f"--html-template={template}"], check=True)
    return out / "index.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "repository")
    print(build_repository(parser.parse_args().out))
