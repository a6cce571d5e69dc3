"""Small training runs for the tests: their options, their logs compared, a run in a process of its own or in two.

A U-Net of 2 channels on phantoms of 12 mm voxels; two steps an epoch take a tenth of a second. The fixtures `flags`,
`finished` and `refused` are in conftest.py.
"""

import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from uniseg import checkpoint, train
from uniseg.baselines import PlainModel, Softmax
from uniseg.continual import Extension
from uniseg.machine.device import multiplies_in_bf16
from uniseg.model import ModelConfig, UniversalModel

ROOT = Path(__file__).resolve().parents[1]
# Whether bf16 is ten times slower than float32 here. Asked of Linux, as conftest.py replaces device.has_bf16.
IMITATES_BF16 = multiplies_in_bf16(Path("/proc/cpuinfo")) is False
RUN_FILES = {"config.json", "metrics.jsonl", "metrics.csv", "validation.json", "progress.png", "overlays",
             "MODEL_CARD.md", "last.pt",
             "last.prev.pt", "best.pt"}                                                  # what a run leaves
TINY = ["--backbone", "unet", "--width", "2", "--lpg-hidden", "8", "--spacing", "12", "--patch-size", "16", "16", "16",
        "--batch-size", "2", "--steps-per-epoch", "2", "--epochs", "10", "--warmup-epochs", "2", "--lr", "1e-3",
        "--val-every", "5", "--folds", "3",
        # prior: so that there is a Dice from the start
        "--fold", "1", "--prior", "0.6", "--workers", "0", "--device", "cpu"]


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_seconds(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def assert_equal_state(a, b, path=""):
    """Two nested dicts and lists with tensors are equal, bit by bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal_state(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal_state(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def assert_same_run(a, b):
    """P5: weights, best weights, optimiser, position and log are the same."""
    for name in ("last.pt", "best.pt"):
        one, other = checkpoint.read(a / name), checkpoint.read(b / name)
        assert_equal_state(one["weights"], other["weights"], name)
        assert_equal_state(one.get("training"), other.get("training"), name)
    assert without_seconds(metrics(a)) == without_seconds(metrics(b))


FORKS = multiprocessing.get_context("forkserver")        # a server that has imported torch starts a run in a moment
FORKS.set_forkserver_preload(["pytest", "torch._dynamo", "uniseg.train"])


class ForkedRun:
    """`python -m uniseg.train` in a process, session and group of its own that need not import torch.

    Used as a subprocess.Popen.
    """

    def __init__(self, *arguments, stderr=os.devnull, environment=(), threads=None, before=None):
        """stderr: a file; environment: {name: value} of it besides what is there; before: what it calls first"""
        self.stderr = Path(stderr)
        self.process = FORKS.Process(target=_train, args=(
            [str(a) for a in arguments], self.stderr, dict(environment), threads or torch.get_num_threads(), before))
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def wait(self, timeout=120):
        """The exit code. With a limit, so that a hang is a failure."""
        self.process.join(timeout)
        if self.poll() is None:
            self.kill()
            pytest.fail(f"hangs: {self.stderr.read_text()[-2000:]}")
        return self.poll()

    def communicate(self, timeout=120):
        code = self.wait(timeout)
        return "", self.stderr.read_text() or f"the run ended with exit code {code}"


def _train(arguments, stderr, environment, threads, before):
    os.setsid()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(threads)
    if before is not None:
        before()
    train.command(arguments)


def first_as_it_is_then_forked():
    """In place of subprocess.run, for commands `python -m uniseg.train ...`: only the first imports torch anew."""
    run, calls = subprocess.run, []

    def started(command, check):
        assert command[:3] == [sys.executable, "-m", "uniseg.train"] and check
        calls.append(command)
        if len(calls) == 1:
            run(command, check=True)
        else:
            with tempfile.NamedTemporaryFile() as said:
                process = ForkedRun(*command[3:], stderr=said.name)
                assert process.wait() == 0, process.communicate()[1]
    return started


def make_trainings_small(monkeypatch, continual, partial_labels, write_phantoms):
    """The trainings of benchmarks/continual.py with a phantom of 8 mm voxels a step, and two steps an epoch.

    continual, partial_labels: the modules, as the test has imported them; write_phantoms: that of the former
    The first training is a process as users start it, the others are forked.
    """
    small = ("--backbone unet --width 2 --lpg-hidden 8 --spacing 8 --patch-size 32 32 32 --folds 1 --prior 0.02 "
             "--workers 0").split()
    monkeypatch.setattr(partial_labels.subprocess, "run", first_as_it_is_then_forked())
    monkeypatch.setattr(partial_labels, "STEPS_PER_EPOCH", 2)
    monkeypatch.setattr(continual, "write_phantoms", lambda out, protocol: write_phantoms(out, protocol, 1, 1, 8.0))
    monkeypatch.setattr(continual, "RECIPE", small)
    monkeypatch.setattr(continual, "EXTEND", small[-6:])


def forked_pair(folder, *arguments):
    """`uniseg.train` as two processes, as torchrun would start them; waits until both have ended well.

    folder: for what they print
    """
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    ranks = [ForkedRun(*arguments, stderr=folder / f"stderr of rank {rank}", threads=1,
                       environment={**together, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.communicate() for rank in ranks]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


class ForkedInference(ForkedRun):
    """`uniseg.infer` in a process of its own. At the `call`-th call of a function it is killed, or it rests there.

    trap: the function as "module:attribute", replaced where that module looks it up
    act:  "kill": SIGKILL before the call. "rest": the file `resting` appears, the call never ends, and neither does
          the cleaning up after a first Ctrl-C
    """

    def __init__(self, arguments, trap, call, act, resting=None):
        options = ([str(a) for a in arguments], os.getcwd(), trap, call, act, resting)
        self.process = FORKS.Process(target=_infer_trapped, args=options)
        self.process.start()


def _infer_trapped(arguments, folder, trap, call, act, resting):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.chdir(folder)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, _, attribute = trap.partition(":")
    owner, (*path, name) = importlib.import_module(module), attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), []

    def trapped(*args, **options):
        calls.append(True)
        if len(calls) == call and act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(calls) == call:
            try:
                Path(resting).touch()
                time.sleep(60)
            finally:
                Path(resting).with_suffix(".cleaning").touch()
                time.sleep(60)
        return real(*args, **options)
    setattr(owner, name, trapped)
    sys.exit(importlib.import_module("uniseg.infer").main(arguments))


def interrupted_by(number, monkeypatch, function, call, module=train):
    """The `call`-th call of <module>.<function> begins with this signal. Returns the calls."""
    real, calls = getattr(module, function), []

    def signalled(*arguments, **options):
        calls.append(True)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)
    monkeypatch.setattr(module, function, signalled)
    return calls


def wait_until(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    if not condition():
        process.kill()
        pytest.fail(process.communicate()[1])


CLASSES = ("spleen", "liver", "aorta")


def small_network(lpg="independent"):
    torch.manual_seed(0)
    config = ModelConfig(CLASSES, "unet", 2, lpg, 8, text_width=4)
    return UniversalModel(config, torch.randn(3, 4))


def objectives():
    """{name: (network, loss of a batch)}: new classes by Eq. (5) and by a baseline, from a frozen model of the first
    two of three."""
    torch.manual_seed(1)
    old = UniversalModel(ModelConfig(CLASSES[:2], "unet", 2, "independent", 8, text_width=4), torch.randn(2, 4)).eval()
    plain, plain_old = (PlainModel(ModelConfig(CLASSES[:n], "unet", 2, head="softmax")) for n in (3, 2))
    return {"Eq. (5)": (small_network(), Extension(old)), "plop": (plain, Softmax(plain, plain_old.eval(), "plop"))}


def batch_of(seed, *labelled):
    """One sample a row of `labelled`, which is a string such as "101": which classes are annotated."""
    g = torch.Generator().manual_seed(seed)
    size = (len(labelled), 16, 16, 16)
    return {"image": torch.rand(size, generator=g)[:, None], "bits": torch.randint(0, 8, size, generator=g),
            "labelled": torch.tensor([[c == "1" for c in row] for row in labelled]),
            "case": [str(seed)] * len(labelled)}


def joined(*batches):
    return {key: torch.cat([b[key] for b in batches]) if key != "case" else [c for b in batches for c in b[key]]
            for key in batches[0]}


def gradients(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def torchrun(*arguments, how=("--standalone", "--nproc-per-node", "2")):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *how, "-m", "uniseg.train", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True)


def ended(process, seconds=120):
    """The process's stderr once it has ended; with a limit, so that a hang is a failure."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"hangs: {process.communicate()[1][-2000:]}")
