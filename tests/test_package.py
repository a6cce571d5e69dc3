"""The installed package: a wheel, in an environment of its own, far from the checkout, does what the checkout does.

The wheel is built from a copy, so that no build/ or egg-info is left in the checkout. The new environment sees torch
and the other requirements of this one through a .pth file; nothing is downloaded.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(TOOLS), reason=f"building a wheel needs {' and '.join(TOOLS)}; not installed")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {
    "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}


def run(*command, cwd):
    """stdout of a command; its stderr when it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    copy, out = tmp_path_factory.mktemp("copy") / "uniseg", tmp_path_factory.mktemp("wheel")
    copy.mkdir()
    for file in (f for f in ROOT.iterdir() if f.is_file()):
        shutil.copy(file, copy)
    shutil.copytree(ROOT / "uniseg", copy / "uniseg", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, copy, cwd=copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the commands of a fresh environment with the wheel in it."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    commands = home / ("Scripts" if os.name == "nt" else "bin")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(run(commands / "python", "-c", where, cwd=home).strip())
    assert home.resolve() in own.resolve().parents
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "requirements_of_the_tests.pth").write_text("\n".join(libraries))
    run(commands / "python", "-m", "pip", "install", "--no-deps", "--ignore-installed", wheel, cwd=home)
    return commands


@pytest.mark.slow
def test_the_wheel_holds_the_embeddings_the_weights_and_nothing_but_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"uniseg/embeddings.npy", "uniseg/weights/default.pt", "uniseg/weights/default.json"} <= set(names)
    assert not [n for n in names if not n.startswith(("uniseg/", "uniseg-"))]        # no tests, tools, benchmarks
    assert not [n for n in names if n.endswith((".pyc", ".tmp"))]
    assert any(n.endswith("LICENSE") for n in names)
    sources = {str(f.relative_to(ROOT)) for f in [*(ROOT / "uniseg").rglob("*.py"),
                                                  *(ROOT / "uniseg" / "viewer" / "web").iterdir()]}
    assert sources <= {str(Path(n)) for n in names}


@pytest.mark.slow
def test_the_wheel_is_universal_and_names_its_version_and_few_requirements(wheel):
    import uniseg

    assert wheel.name == f"uniseg-{uniseg.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as content:
        metadata = content.read(f"uniseg-{uniseg.__version__}.dist-info/METADATA").decode()
    required = [line.split(":")[1].strip() for line in metadata.splitlines()
                if line.startswith("Requires-Dist") and "extra" not in line]
    assert sorted(re.match(r"\w+", r).group() for r in required) == ["nibabel", "numpy", "scipy", "torch", "tqdm"]


@pytest.mark.slow
def test_the_installed_package_is_its_own_and_every_module_of_it_can_be_imported(installed, tmp_path):
    program = ("import importlib, pkgutil, uniseg, uniseg.embeddings as e, uniseg.segmenter as s\n"
               "modules = [m.name for m in pkgutil.walk_packages(uniseg.__path__, 'uniseg.')]\n"
               "for name in modules: importlib.import_module(name)\n"
               "print(uniseg.__file__, e.default_path(), s.DEFAULT_WEIGHTS, len(modules), sep='\\n')")
    *places, modules = run(installed / "python", "-c", program, cwd=tmp_path).splitlines()
    for place in places:
        assert installed.parent.resolve() in Path(place).resolve().parents and Path(place).is_file(), place
    assert int(modules) > 15


@pytest.mark.slow
def test_the_commands_uniseg_infer_and_uniseg_train_exist_and_answer(installed, tmp_path):
    assert " 32 kidney_cyst" in run(installed / "uniseg-infer", "--list-classes", cwd=tmp_path)
    assert "usage" in run(installed / "uniseg-train", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_the_demonstration_runs_from_an_empty_folder_with_the_installed_weights(installed, tmp_path):
    out = run(installed / "python", "-m", "uniseg.infer", "--demo", "--device", "cpu", cwd=tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["demo_ct.nii.gz", "demo_ct_preview.png", "demo_ct_seg.json",
                                                         "demo_ct_seg.nii.gz"]
    assert out.startswith("demo_ct_seg.nii.gz  (") and "liver" in out
    stats = json.loads((tmp_path / "demo_ct_seg.json").read_text())
    assert stats["weights"]["file"] == "default.pt" and stats["classes"]["liver"]["voxels"] > 0
