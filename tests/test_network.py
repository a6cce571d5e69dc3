"""O18, P7: no command asks the network. Each runs where there is none, and where every socket of Python is noted.

On Linux the process leaves the machine's network for a namespace of its own, in which not even its own address
answers: what a C library asks there fails as well. Python's audit events tell what Python asks.
"""

import ctypes
import json
import os
import socket
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from runs import FORKS
from test_infer import save_weights
from uniseg.__main__ import COMMANDS
from uniseg.imaging.volume import write_volume

NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000                               # CLONE_NEWNET, CLONE_NEWUSER, <sched.h>


def without_network(commands, folder, report):
    """In a process of its own: run commands of `python -m uniseg` and report what they asked the network."""
    os.chdir(folder)
    os.dup2(os.open("output.txt", os.O_CREAT | os.O_WRONLY), 1)
    os.dup2(1, 2)
    asked = []

    def note(event, arguments):
        if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")) and not (
                event == "socket.__new__" and arguments[1] == socket.AF_UNIX):      # how processes share tensors
            asked.append(event)

    libc = ctypes.CDLL(None, use_errno=True)
    alone = any(libc.unshare(flags) == 0 for flags in (NEW_NETWORK, NEW_USER | NEW_NETWORK))
    sys.addaudithook(note)
    codes = {}
    for name, arguments in commands:
        try:
            codes[name] = name_to_code(name, arguments)
        except SystemExit as end:
            codes[name] = end.code
        except Exception:
            codes[name] = traceback.format_exc()
    interfaces = [line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]
    Path(report).write_text(json.dumps({"alone": alone, "interfaces": interfaces, "codes": codes, "asked": asked}))
    os._exit(0)


def name_to_code(name, arguments):
    from uniseg.__main__ import main

    if name == "a look-up":                                                  # shows that the notes are taken
        try:
            return len(socket.getaddrinfo("example.org", 80))
        except OSError:
            return 0
    return main([name, *arguments])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has namespaces of the network")
def test_o18_no_command_asks_the_network(tmp_path, flags, phantom_root):
    save_weights(tmp_path / "tiny.pt", ("liver", "spleen"))
    write_volume(tmp_path / "ct.nii.gz", np.full((16, 16, 16), 40, np.int16), np.diag([12.0, 12, 12, 1]))
    write_volume(tmp_path / "liver.nii.gz", np.full((16, 16, 16), 6, np.int16), np.diag([12.0, 12, 12, 1]))
    commands = {
        "figures": ["contours", "ct.nii.gz", "--of", "liver", "--reading", "AI=liver.nii.gz"],
        "infer": ["ct.nii.gz", "-o", "results", "--masks", "--weights", "tiny.pt", "--device", "cpu"],
        "evaluate": ["--pred", "results", "--ref", "results", "--bootstrap", "0"],
        "train": flags(tmp_path / "run", "--epochs", 1, "--val-every", 1),
        "data": [str(phantom_root), "--spacing", "12"],
        "embeddings": [], "layouts": [], "checkpoint": ["tiny.pt"],
        "complexity": ["--backbone", "segresnet", "--patch", "32", "32", "32", "--classes", "2"]}
    assert set(commands) == set(COMMANDS)
    report = tmp_path / "report.json"
    for planned in (list(commands.items()), [("a look-up", [])]):
        process = FORKS.Process(target=without_network, args=(planned, str(tmp_path), str(report)))
        process.start()
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
        found = json.loads(report.read_text())
        if planned[0][0] == "a look-up":
            assert found["asked"] == ["socket.getaddrinfo"] and (found["codes"] == {"a look-up": 0} or
                                                                 not found["alone"])
        else:
            assert set(found["codes"].values()) <= {0, 1}, found["codes"]
            assert {name for name, code in found["codes"].items() if code} <= {"data"}     # warnings
            assert found["asked"] == []
    if not found["alone"]:
        pytest.skip("this system gives no namespace of its own: Python's sockets are tested, those of C are not")
    assert set(found["interfaces"]) <= {"lo"}
