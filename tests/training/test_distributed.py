"""Several processes as one: their gradient, their validation, and what each fault of one of them does to all. gloo on
the CPU.

The quick tests share two groups of processes: each of two, and of four, does all its work once and leaves the results
in files. Ids like T8 are those of docs/faults.md.
"""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import Patient, write_dataset
from runs import (
    CLASSES,
    ROOT,
    RUN_FILES,
    assert_equal_state,
    assert_same_run,
    batch_of,
    ended,
    forked_pair,
    free_port,
    gradients,
    joined,
    metrics,
    objectives,
    small_network,
    torchrun,
    wait_until,
)
from uniseg import checkpoint, train
from uniseg.backbones import BACKBONES
from uniseg.machine.processes import several_processes
from uniseg.model import ModelConfig, UniversalModel
from uniseg.phantom import make_phantom
from uniseg.train import main
from uniseg.training import split
from uniseg.training.options import build_parser
from uniseg.training.recipe import TrainConfig
from uniseg.training.steps import training_step
from uniseg.training.validation import mean_dice, validate


def spawned(work, world, folder, *arguments, seconds=120):
    """Run work(rank, folder, *arguments) in `world` processes; what each saved. With a limit, so that a hang is a
    failure."""
    processes = torch.multiprocessing.start_processes(work, (str(folder), *arguments), nprocs=world, join=False,
                                                      start_method="forkserver")
    end = time.monotonic() + seconds
    try:
        while not processes.join(timeout=max(0.1, end - time.monotonic())):
            assert time.monotonic() < end, "the processes hang"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def parallel(network):
    return torch.nn.parallel.DistributedDataParallel(network)


# ----------------------------------------------------------------------------------------------------- a step, together

PAIRS_OF_RANKS = {
    "unequal": (["111"], ["010"]), "apart": (["100"], ["011"]), "rank 1 has none": (["111"], ["000"]),
    "nobody": (["000"], ["000"]), "rank 1 has no positive voxel": (["111"], ["111"])}


def share(name, rank):
    """The batch of one rank."""
    batch = batch_of(rank, *PAIRS_OF_RANKS[name][rank])
    if rank == 1 and "no positive" in name:
        batch["bits"] *= 0
    return batch


def one_of_two(rank, folder, runs):
    """What each of two processes does: steps with unequally labelled batches, then whole runs; results go into a
    file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name in PAIRS_OF_RANKS:
        network = small_network()
        loss = training_step(parallel(network), [share(name, rank)], TrainConfig(), 2)
        found[name] = loss, gradients(network)

    network = small_network()  # two micro-batches in each of two ranks
    parts = [batch_of(2 * part + rank, ["111", "010", "100", "000"][2 * part + rank]) for part in range(2)]
    found["accumulate"] = training_step(parallel(network), parts, TrainConfig(accumulate=2), 2), gradients(network)

    for name, (network, objective) in objectives().items():
        loss = training_step(parallel(network), [batch_of(20 + rank, ["111", "010"][rank])], TrainConfig(), 2,
                             objective=objective)
        found[name] = loss, gradients(network)

    network = small_network()
    torch.manual_seed(rank)  # ranks must not need the same state
    model, optimizer = parallel(network), torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(5):
        optimizer.zero_grad()
        training_step(model, [batch_of(10 + 2 * step + rank, "000" if rank else "110")], TrainConfig(), 2)
        optimizer.step()
    found["weights"] = network.state_dict()
    torch.distributed.destroy_process_group()
    for name, (port, fault, options) in runs.items():
        found[name] = a_run(rank, port, fault, options)
    torch.save(found, f"{folder}/rank{rank}.pt")
    os._exit(0)                                                                       # why: processes.leave


def a_run(rank, port, fault, options):
    """(exit code, stderr, steps) of train.main as rank 0 or 1 of 2, as torchrun would start it.

    fault: None, ("nan", step): what rank 1 draws for that step is NaN, ("stall", step): it sleeps there.
    """
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost",
                      MASTER_PORT=str(port))
    steps = []

    def step(model, batches, *more):
        if rank == 1 and fault == ("nan", len(steps)):
            batches[0]["image"][:] = float("nan")
        if rank == 1 and fault == ("stall", len(steps)):
            time.sleep(6)
        steps.append(training_step(model, batches, *more).item())
        return torch.tensor(steps[-1])
    train.training_step = step
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(options)
    return code, err.getvalue(), steps


@pytest.fixture(scope="module")
def bad_root(tmp_path_factory):
    """A dataset of four cases, the second of which cannot be read: rank 1 meets it first."""
    folder, patient = tmp_path_factory.mktemp("bad") / "set", Patient(*make_phantom((24.0, 24.0, 24.0)))
    write_dataset(folder, {"liver": ("liver",), "spleen": ("spleen",)}, {name: patient for name in "abcd"})
    image = folder / "imagesTr" / "b.nii.gz"
    image.write_bytes(image.read_bytes()[:500])
    return folder.parent


@pytest.fixture(scope="module")
def two(flags, finished, bad_root, tmp_path_factory):
    """What two processes found, and the folder of their runs."""
    folder = tmp_path_factory.mktemp("two")
    few, bad = ("--batch-size", 1, "--epochs", 2, "--val-every", 2), ("--folds", 1, "--fold", 0, "--spacing", 24)
    runs = {
        "nan": (("nan", 1), flags(folder / "nan", *few)),
        "failed": (("nan", 1), flags(folder / "failed", *few, "--max-skipped", 0)),
        "skip bad": (None, flags(folder / "skip", *few, *bad, "--skip-bad", root=bad_root)),
        "bad": (None, flags(folder / "bad", *few, *bad, root=bad_root)),
        "other number": (None, flags(finished, "--resume")),
        "not new": (None, flags(finished)),
        "stall": (("stall", 1), flags(folder / "stall", *few, "--timeout", 0.05)),     # 3 seconds
    }
    return spawned(one_of_two, 2, folder, {name: (free_port(), *run) for name, run in runs.items()}), folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS_OF_RANKS)
def test_t1_t2_two_processes_give_loss_and_gradient_of_the_joint_batch(two, name):
    """T1, T2, T3: whatever the shares of labelled pairs are, none included, and of positive voxels."""
    network = small_network()
    loss = training_step(network, [joined(*(share(name, rank) for rank in (0, 1)))], TrainConfig())
    for found in two[0]:
        assert torch.allclose(found[name][0], loss)
        assert torch.allclose(found[name][1], gradients(network), rtol=1e-4, atol=1e-6)
    assert loss.item() == 0 if name == "nobody" else loss.item() > 0.5


@pytest.mark.slow
def test_t1_micro_batches_in_two_processes_give_the_gradient_of_the_joint_batch(two):
    network = small_network()
    batches = [batch_of(i, labelled) for i, labelled in enumerate(["111", "010", "100", "000"])]
    loss = training_step(network, [joined(*batches)], TrainConfig())
    for found in two[0]:
        assert torch.allclose(found["accumulate"][0], loss)
        assert torch.allclose(found["accumulate"][1], gradients(network), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", objectives())
def test_t1_two_processes_that_learn_new_classes_give_the_gradient_of_the_joint_batch(two, name):
    network, objective = objectives()[name]
    loss = training_step(network, [joined(batch_of(20, "111"), batch_of(21, "010"))], TrainConfig(),
                         objective=objective)
    for found in two[0]:
        assert torch.allclose(found[name][0], loss, rtol=1e-4)
        assert torch.allclose(found[name][1], gradients(network), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_t3_a_process_without_labelled_classes_keeps_its_weights_equal_to_the_others(two):
    a, b = (found["weights"] for found in two[0])
    assert_equal_state(a, b)
    # steps were made
    assert not torch.equal(a["precls_conv.2.weight"], small_network().state_dict()["precls_conv.2.weight"])


# ------------------------------------------------------------------------------------------------ a fault in one of two

def errors(found, name):
    """The exit codes and the error lines of both ranks."""
    codes, lines = zip(*((code, [line for line in err.splitlines() if "error" in line]) for code, err,
                         _ in (f[name] for f in found)))
    assert all("Traceback" not in f[name][1] for f in found)
    return codes, lines


@pytest.mark.slow
def test_t15_a_nan_in_one_process_skips_the_step_in_both(two):
    found, folder = two
    assert errors(found, "nan") == ((0, 0), ([], []))
    losses = [f["nan"][2] for f in found]
    assert [loss != loss for loss in losses[0]] == [False, True, False, False] and str(losses[0]) == str(losses[1])
    assert "warning: loss is nan at step 1" in found[0]["nan"][1] and found[1]["nan"][1] == ""      # told once
    assert [r.get("skipped") for r in metrics(folder / "nan")] == [1, None]
    content = checkpoint.read(folder / "nan" / "last.pt")
    assert all(int(s["step"]) == 3 for s in content["training"]["optimizer"]["state"].values())


@pytest.mark.slow
def test_t15_both_stop_where_no_more_may_be_skipped_and_both_batches_are_saved(two):
    found, folder = two
    codes, lines = errors(found, "failed")
    assert codes == (1, 1)
    for rank in (0, 1):
        assert re.fullmatch(rf"uniseg: error: rank {rank}: loss is nan at step 1, cases .*", *lines[rank])
    drawn = json.loads((folder / "failed" / "failed_batch.json").read_text())["drawn"]
    assert [(d["rank"], d["sample"]) for d in drawn] == [(0, 2), (1, 3)]


@pytest.mark.slow
def test_t7_a_bad_file_met_by_rank_1_ends_both_and_is_named_with_the_rank(two, bad_root):
    found, folder = two
    codes, lines = errors(found, "bad")
    assert codes == (1, 2)
    assert lines[1][0].startswith(f"uniseg: error: rank 1: {bad_root / 'set' / 'imagesTr' / 'b.nii.gz'}: truncated")
    assert lines[0] == ["uniseg: error: rank 0: another process of this run ended. Its own message says why; "
                        "then go on with --resume."]
    assert not (folder / "bad" / "run.lock").exists()


@pytest.mark.slow
def test_d13_what_rank_1_cannot_read_is_left_out_by_both(two):
    found, folder = two
    assert errors(found, "skip bad") == ((0, 0), ([], []))
    assert "warning: set/b is left out: " in found[0]["skip bad"][1] and found[1]["skip bad"][1] == ""
    config = json.loads((folder / "skip" / "config.json").read_text())
    assert config["cases"] == ["set/a", "set/c", "set/d"] and list(config["left_out"]) == ["set/b"]
    assert [r["left_out"] for r in metrics(folder / "skip")] == [1, 1]


@pytest.mark.slow
def test_t8_a_process_that_stalls_is_waited_for_no_longer_than_the_timeout(two):
    found, _ = two
    codes, lines = errors(found, "stall")
    assert codes == (1, 1)
    assert lines[0] == ["uniseg: error: rank 0: another process did not answer within --timeout. Look for one that was "
                        "killed or stalls, or give more minutes where a preprocessing or validation takes long; then "
                        "go on with --resume."]


@pytest.mark.slow
def test_t12_a_run_is_not_resumed_with_another_number_of_processes(two):
    codes, lines = errors(two[0], "other number")
    assert codes == (2, 2) and "processes: 1 -> 2" in lines[0][0]


@pytest.mark.slow
def test_a_refusal_in_two_processes_ends_both_and_says_why(two):
    codes, lines = errors(two[0], "not new")
    assert codes == (2, 2) and "holds a run already" in lines[0][0]


def test_t14_a_port_that_is_taken_is_an_error_with_a_remedy(flags, tmp_path, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost",
                            "MASTER_PORT": taken.getsockname()[1]}.items():
            monkeypatch.setenv(name, str(value))
        assert main(flags(tmp_path / "run")) == 1
    assert capsys.readouterr().err == ("uniseg: error: rank 0: the port for the processes to meet is taken. Let "
                                       "torchrun --standalone find one, or choose another --master-port.\n")


# ----------------------------------------------------------------------------------------------- four, and little to do

DISJOINT = ["100", "010", "001", "000"]


def validated(cases, rank=0, world=1):
    network = small_network()
    network.set_prior(0.6)                                                            # it finds something
    counts = validate(network, cases, TrainConfig(patch_size=(16, 16, 16)), (rank, world, torch.device("cpu")))
    return mean_dice(counts, cases, network.classes)


def one_of_four(rank, folder, options):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    network = small_network()
    loss = training_step(parallel(network), [batch_of(rank, DISJOINT[rank])], TrainConfig(), 4)
    train_cases, val_cases, _ = split.gather_cases(build_parser().parse_args(options), rank, 4)
    torch.save({"loss": loss, "gradients": gradients(network), "train": [c.id for c in train_cases],
                "val": [c.id for c in val_cases], "dice": validated(val_cases, rank, 4)}, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)


@pytest.fixture(scope="module")
def four(flags, tmp_path_factory):
    """Four processes, five cases: three train, two validate."""
    folder = tmp_path_factory.mktemp("four")
    return spawned(one_of_four, 4, folder, flags("unused", "--cache", folder / "cache"))


@pytest.mark.slow
def test_t4_processes_whose_cases_annotate_different_classes_give_the_gradient_of_the_joint_batch(four):
    network = small_network()
    loss = training_step(network, [joined(*(batch_of(rank, DISJOINT[rank]) for rank in range(4)))], TrainConfig())
    for found in four:
        assert torch.allclose(found["loss"], loss)
        assert torch.allclose(found["gradients"], gradients(network), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_t5_t11_fewer_cases_than_processes_are_prepared_and_validated_as_by_one(four, flags):
    """Cases are not repeated to fill up the ranks, so none counts twice."""
    train_cases, val_cases, _ = split.gather_cases(build_parser().parse_args(flags("unused")), 0, 1)
    alone = validated(val_cases)
    assert set(alone) == {"spleen", "liver"} and all(0 < dice < 1 for dice in alone.values())  # no aorta in these cases
    for found in four:
        assert (len(found["train"]), len(found["val"])) == (3, 2)
        assert found["train"] == [c.id for c in train_cases] and found["dice"] == pytest.approx(alone, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------- one process

@pytest.mark.parametrize("backbone", BACKBONES)
def test_t13_no_layer_keeps_running_statistics_that_could_differ_between_processes(backbone):
    """Instance, layer and group norms use the sample at hand alone; SyncBatchNorm has nothing to do here."""
    network = UniversalModel(ModelConfig(CLASSES, backbone, 16 if backbone == "segresnet" else 12, "independent", 8,
                                         text_width=4),
                             torch.randn(3, 4))
    assert not [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
    network = small_network()
    before = {n: t.clone() for n, t in network.named_buffers()}
    training_step(network, [batch_of(0, "111")], TrainConfig())
    assert_equal_state(dict(network.named_buffers()), before)


@pytest.mark.slow
def test_t17_one_process_trains_where_torch_has_no_distributed_package(flags, tmp_path, monkeypatch, capsys):
    """Such a build has torch.distributed.is_available and nothing else of it."""
    for name in ("is_initialized", "all_reduce", "barrier", "all_gather_object", "init_process_group",
                 "destroy_process_group"):
        monkeypatch.delattr(torch.distributed, name)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert not several_processes()
    assert main(flags(tmp_path / "run", "--epochs", 1, "--val-every", 1)) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(flags(tmp_path / "more")) == 2
    error = capsys.readouterr().err
    assert "this build of PyTorch has no torch.distributed. Start one process, without torchrun." in error


# ------------------------------------------------------------------------------------------------------------- torchrun

@pytest.mark.slow
@pytest.mark.parametrize("world, said", [("1", "done, taken down"), ("2", "done, ")])
def test_a_process_of_several_leaves_with_its_exit_code_before_gloo_meets_a_dying_interpreter(world, said):
    code = ("import atexit; from uniseg.machine.processes import leave; atexit.register(print, 'taken down', end=''); "
            "print('done, ', end=''); leave(3)")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT),
                                                             "WORLD_SIZE": world},
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, said)


@pytest.fixture(scope="module")
def side_by_side(flags, tmp_path_factory):
    """The folders of two equal runs of two processes each, started at the same time. Not to be written to."""
    folder = tmp_path_factory.mktemp("side_by_side")
    both = [torchrun(*flags(folder / name, "--batch-size", 1)) for name in "ab"]
    for process in both:
        err = ended(process)
        assert process.returncode == 0, err
    return folder / "a", folder / "b"


@pytest.mark.slow
def test_t14_two_runs_on_one_machine_do_not_get_in_each_others_way(side_by_side):
    """torchrun --standalone lets the system choose the port."""
    assert_same_run(*side_by_side)


@pytest.mark.slow
def test_t9_two_processes_train_like_one_with_twice_the_batch(side_by_side, finished):
    """And only one of them writes: twice the lines in the log, or a file more, would be the other's."""
    out, _ = side_by_side
    assert {p.name for p in out.iterdir()} == RUN_FILES
    together, alone = metrics(out), metrics(finished)
    assert len(together) == len(alone) == 10
    for a, b in zip(together, alone):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a.get("dice", {}).keys() == b.get("dice", {}).keys()                   # T11: validation shared out
        assert a.get("dice", {}) == pytest.approx(b.get("dice", {}), abs=0.02)
    contents = [checkpoint.read(folder / "last.pt") for folder in (out, finished)]
    torch.manual_seed(0)
    start = checkpoint.build_network(contents[0]["network"]).state_dict()
    # A bias before an instance norm has no effect; its gradient is rounding noise, which AdamW makes as large as any
    # other.
    ours, theirs, start = (torch.cat([w[n].flatten() for n in start
                                      if not n.endswith(("conv1.bias", "organ_embedding"))])
                           for w in (*(c["weights"] for c in contents), start))
    assert (ours - theirs).norm() < 0.01 * (theirs - start).norm()  # far from the start, near each other


@pytest.mark.slow
def test_two_nodes_meet_at_an_address_and_train_like_one(flags, side_by_side, tmp_path):
    """Both on this machine: `torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT` on each."""
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "7", "--rdzv-backend", "c10d", "--rdzv-endpoint",
            f"localhost:{free_port()}"]
    nodes = [torchrun(*flags(tmp_path / "nodes", "--batch-size", 1), how=meet) for _ in range(2)]
    for process in nodes:
        err = ended(process)
        assert process.returncode == 0, err
    assert_same_run(tmp_path / "nodes", side_by_side[0])


LONGER = ["--batch-size", 1, "--epochs", 20, "--val-every", 10]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """The folder of a run of 20 epochs in two processes that nothing interrupted. Not to be written to."""
    folder = tmp_path_factory.mktemp("whole")
    forked_pair(folder, *flags(folder / "run", *LONGER))
    return folder / "run"


@pytest.mark.slow
def test_t10_a_run_of_two_processes_stopped_by_sigterm_resumes_as_if_nothing_had_happened(flags, whole, tmp_path):
    process = torchrun(*flags(tmp_path / "run", *LONGER))
    wait_until((tmp_path / "run" / "last.pt").exists, process)
    process.terminate()                                                               # torchrun passes it on
    assert "stopped by SIGTERM after step" in ended(process) and process.returncode != 0
    forked_pair(tmp_path, *flags(tmp_path / "run", *LONGER, "--resume"))
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_t6_when_one_of_two_processes_is_killed_all_end_and_the_run_resumes(flags, whole, tmp_path):
    process = torchrun(*flags(tmp_path / "run", *LONGER))
    wait_until((tmp_path / "run" / "last.pt").exists, process)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(max(workers), signal.SIGKILL)
    ended(process, seconds=60)
    assert process.returncode != 0
    forked_pair(tmp_path, *flags(tmp_path / "run", *LONGER, "--resume"))
    assert_same_run(tmp_path / "run", whole)


def children(process):
    """Process ids of what a process has started, all the way down."""
    found, queue = [], [process.pid]
    while queue:
        with contextlib.suppress(OSError):
            pids = [int(pid) for task in Path(f"/proc/{queue[0]}/task").iterdir()
                    for pid in (task / "children").read_text().split()]
            found += pids
            queue += pids
        queue.pop(0)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_t16_a_signal_to_the_group_saves_leaves_no_orphan_and_the_run_resumes(flags, tmp_path, number):
    """Also with workers that draw patches; torchrun passes the signal on, so that its processes may have it twice."""
    out, options = tmp_path / "run", [*LONGER, "--workers", 1]
    process = torchrun(*flags(out, *options))
    wait_until((out / "last.pt").exists, process)
    family = children(process)
    assert len(family) >= 4                                                           # two ranks, a worker each
    os.killpg(process.pid, number)
    err = ended(process, seconds=60)
    assert process.returncode != 0 and f"uniseg: stopped by {number.name} after step" in err
    end = time.monotonic() + 10
    while any(map(alive, family)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, family)) and not (out / "run.lock").exists()
    forked_pair(tmp_path, *flags(out, *options, "--resume"))
    assert len(metrics(out)) == 20
