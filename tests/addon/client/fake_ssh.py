"""A stand-in for ssh that runs the other machine's side here: `fake_ssh.py FAR WORKER … COMMAND`.

FAR is the folder of that machine. Its file `plan` holds one fault a line for the next transfers, "DIRECTION FAULT
BYTES":
the direction "up" or "down", "cut" (the connection ends), "stall" or "flip" (a byte arrives changed) after so many
bytes; or "refuse". `passed` gets a line for each connection that was cut: how many bytes went up and down.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

CODE = {
    "im3d serve --remote": "from im3d.service.server import serve; serve([{python!r}, {worker!r}], 0, Path({far!r}))",
    "im3d serve --files": "from im3d.service.remote_files import serve_files; "
    "from im3d.shared.pipes import incoming, own_stdout; "
    "raise SystemExit(serve_files(Path({far!r}), incoming(), own_stdout()))",
}


def main() -> None:
    far, worker = sys.argv[1:3]
    code = CODE[sys.argv[-1]].format(python=sys.executable, worker=worker, far=far)
    command = [sys.executable, "-c", f"from pathlib import Path; {code}"]
    os.chdir("/")
    if sys.argv[-1] != "im3d serve --files":
        os.execv(sys.executable, command)
    plan = Path(far, "plan")
    lines = plan.read_text().splitlines() if plan.exists() else []
    plan.write_text("".join(f"{line}\n" for line in lines[1:]))
    fault = (lines[0] if lines else "none").split()
    if fault == ["refuse"]:
        sys.exit("me@far: Permission denied (publickey).")
    os.write(1, b"Welcome to far, {last login: never}\n[]\n")
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    passed = {"up": 0, "down": 0}

    def pump(direction: str, source: int, target: int) -> None:
        while data := os.read(source, 1 << 16):
            if fault[0] == direction:
                room = int(fault[2]) - passed[direction]
                if fault[1] == "flip" and 0 <= room < len(data):
                    data = data[:room] + bytes([data[room] ^ 1]) + data[room + 1 :]
                elif fault[1] in ("cut", "stall") and room < len(data):
                    end(direction, target, data[:room])
            passed[direction] += len(data)
            os.write(target, data)
        os.close(target)

    def end(direction: str, target: int, data: bytes) -> None:
        passed[direction] += len(data)
        os.write(target, data)
        if fault[1] == "stall":
            Path(far, "stalled").touch()
            threading.Event().wait()
        with open(Path(far, "passed"), "a") as file:
            file.write(f"{passed['up']} {passed['down']}\n")
        os.write(2, b"Connection to far closed by remote host.\n")
        os._exit(255)

    down = threading.Thread(target=pump, args=("down", child.stdout.fileno(), 1))
    down.start()
    threading.Thread(target=pump, args=("up", 0, child.stdin.fileno()), daemon=True).start()
    child.wait()
    down.join()
    os._exit(0)


main()
