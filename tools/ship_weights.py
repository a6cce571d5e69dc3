"""Turn a run's checkpoint into the weights inside the package: no optimiser, float16, and a sidecar that needs no torch.

    python tools/ship_weights.py runs/default/last.pt

Writes uniseg/weights/default.pt and uniseg/weights/default.json. MODEL_CARD.md says how the shipped run was made.
"""

import json
import sys
from pathlib import Path

from uniseg import checkpoint
from uniseg.volume import atomic_write

FOLDER = Path(__file__).resolve().parents[1] / "uniseg" / "weights"


def main(source):
    content = checkpoint.read(source)
    network = checkpoint.load_network(content, source)
    about = {**content["about"], "steps": content["training"]["step"], "recipe": content["training"]["config"]}
    FOLDER.mkdir(exist_ok=True)
    target = FOLDER / "default.pt"
    checkpoint.save(target, network, content["preprocessing"], about, half=True)
    with atomic_write(FOLDER / "default.json") as temporary:
        temporary.write_text(json.dumps({"classes": list(network.classes), "sha256": checkpoint.file_sha256(target),
                                         "network": network.describe(), "preprocessing": content["preprocessing"],
                                         "about": about}, indent=1) + "\n")
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {len(network.classes)} classes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
