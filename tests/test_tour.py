"""docs/tour.ipynb: it is a notebook without outputs, and its code runs from top to bottom without Jupyter."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def cells():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return content["cells"]


def test_it_is_committed_without_outputs_and_its_links_lead_to_files(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 8 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"[^!]\[[^\]]+\]\(([^)#]+)", text)
    assert len(links) >= 2 and all((NOTEBOOK.parent / link).is_file() for link in links)
    lines = [line.rstrip("\n") for cell in cells for line in cell["source"]]
    assert max(map(len, lines)) <= 120


@pytest.mark.slow
def test_its_code_runs_and_shows_what_its_text_says(cells, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"docs/tour.ipynb, cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    scores = dict(re.findall(r"^(\w+) +[\d,]+ voxels, Dice (\d\.\d\d)$", printed, re.MULTILINE))
    assert set(scores) == {"liver", "right_kidney", "left_kidney", "spleen", "aorta", "postcava"}
    assert float(scores["liver"]) > 0.7
    assert "experimental (scored too low to be offered" in printed and "postcava (inferior vena cava)" in printed
    assert float(re.search(r"Dice (\d\.\d\d) on a patient that it has not seen", printed)[1]) > 0.6
    assert {p.name for p in Path("tour").iterdir()} == {"ct.nii.gz", "ct_seg.nii.gz", "ct_seg.json", "ct_preview.png",
                                                       "data", "bones"}
