"""Text embeddings of the class names, w of Eq. (1) (Section 3.2.2; encodings compared in Section 4.4.1 and Table 7).

`embeddings.npy` is one structured numpy array with one row per name. The classes of Table 2 come first, in their order.
Further anatomy and lesions follow, so that many new classes need no text encoder. `tools/make_embeddings.py` makes the
file. As in the authors' models, vectors are not scaled to length 1.

Differs from the paper: the paper uses CLIP ViT-B/32 (512 numbers per prompt). The shipped file uses all-MiniLM-L6-v2
(384 numbers per prompt, the mean over its tokens). From a local copy of CLIP's weights, the tool makes a table of CLIP
vectors too. Released checkpoints contain their own CLIP vectors.

    python -m uniseg embeddings               prints the table, with the nearest neighbours of each name
    python -m uniseg embeddings "liver cyst"  looks up one name

Read taxonomy.py first, heads.py next.
"""

import difflib
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import taxonomy
from .machine.command_line import Parser
from .machine.console import error_line, say
from .machine.files import file_sha256

# V1, V2, V3 of Table 7, where V3 is the best. The paper's prompts also say "a aorta".
PROMPTS = {
    "v1": "A photo of a [CLS]",
    "v2": "There is [CLS] in this computerized tomography",
    "v3": "A computerized tomography of a [CLS]",
}
ENCODINGS = (*PROMPTS, "one-hot", "random")
NEIGHBOURS = 3        # nearest names that are printed beside each name of the table
MOST_COMPARED = 5000  # rows of a table whose names are all compared with each other
RANDOM_WIDTH = 512    # width of CLIP's vectors, so that the heads have the paper's size


class EmbeddingError(ValueError):
    """The table of embeddings is not usable, or it does not hold a name. The message says what to do."""


def table_dtype(width: int) -> np.dtype:
    """The fields of one row of a table whose vectors have `width` numbers."""
    strings = [("name", "U64"), ("text", "U96"), ("encoder", "U32")]
    return np.dtype(strings + [(version, np.float32, (width,)) for version in PROMPTS])


def default_path() -> Path:
    """The shipped table: beside this file when installed, at the top level in a checkout. Raises EmbeddingError."""
    installed = Path(__file__).with_name("embeddings.npy")
    checkout = installed.parents[1] / "embeddings.npy"
    for path in (installed, checkout):
        if path.is_file():
            return path
    raise EmbeddingError(f"{installed}: no such file, nor {checkout}. Install uniseg again, or give the path of a "
                         "table that tools/make_embeddings.py made.")


def load_table(path: str | Path | None = None) -> np.ndarray:
    """Read and check a table of embeddings: a structured array with the fields of `table_dtype`.

    path: a table of your own; its names must be unique. None: the shipped table, which must also start with the classes
          of Table 2 in their order.

    Raises EmbeddingError if the file cannot be read or has another form.
    """
    shipped, path = path is None, Path(path or default_path())

    def fail(what: str, remedy: str = "Make a table with tools/make_embeddings.py.") -> NoReturn:
        raise EmbeddingError(f"{path}: {what}. {remedy}")

    try:
        table = _read_npy(path)
    except Exception as error:                         # numpy raises many kinds for a damaged header
        fail(f"cannot be read as a .npy file ({' '.join(str(error).split())[:200]})")
    fields = ("name", "text", "encoder", *PROMPTS)
    if table.dtype.names is None or table.ndim != 1:
        fail(f"an array of shape {table.shape} without names, not a table with one row per name")
    if missing := [field for field in fields if field not in table.dtype.names]:
        fail(f"the table has no field {' or '.join(missing)}")
    if not len(table):
        fail("the table has no rows")
    for field in fields:
        field_type = table.dtype[field]
        if field in PROMPTS and field_type.base.kind != "f":
            fail(f"the field {field} has the type {field_type}, not float numbers")
        if field not in PROMPTS and (field_type.base.kind != "U" or field_type.shape):
            fail(f"the field {field} has the type {field_type}, not text")
    shapes = [table.dtype[version].shape for version in PROMPTS]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
        fail(f"the vectors v1, v2, v3 have the shapes {', '.join(map(str, shapes))}, not one width")
    names = table["name"].tolist()
    if repeated := sorted(name for name, rows in Counter(names).items() if rows > 1):
        fail(f"the name {repeated[0]!r} stands in {names.count(repeated[0])} rows", "Keep one of them.")
    for version in PROMPTS:
        norms = np.linalg.norm(table[version].astype(np.float64), axis=1)  # (rows,)
        if (bad := ~np.isfinite(norms) | (norms == 0)).any():
            fail(f"the {version} vector of {names[bad.argmax()]!r} is zero or not finite")
    if shipped and tuple(names[:len(taxonomy.NAMES)]) != taxonomy.NAMES:
        row = next(i for i, name in enumerate(taxonomy.NAMES) if names[i:i + 1] != [name])
        actual = names[row] if row < len(names) else "absent"
        fail(f"row {row} is {actual}, not {taxonomy.NAMES[row]} as in uniseg.taxonomy",
             "Run tools/make_embeddings.py after a change of classes.")
    return table


def _read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, after its header is compared with the size of the file. Raises OSError, ValueError."""
    if path.exists() and not path.is_file():           # a pipe would be waited for without end
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the format; a table has 1.0")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        promised, there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
        if promised != there:
            raise ValueError(f"its header stands for {promised:,} bytes, {there:,} follow")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def find_row(table: np.ndarray, name: str) -> int:
    """The row number of a class: by its name, by an alias in the taxonomy, or by the text of its prompt.

    Upper case and punctuation do not matter. Raises EmbeddingError if no row fits or the name stands for two classes.
    """
    names = table["name"].tolist()
    if name in names:
        return names.index(name)
    key = taxonomy.normalise_name(name)
    rows = {taxonomy.normalise_name(text): row for row, text in reversed(list(enumerate(table["text"].tolist())))}
    rows |= {taxonomy.normalise_name(table_name): row for row, table_name in enumerate(names)}
    if key in rows:
        return rows[key]
    try:
        classes = taxonomy.resolve(name)
    except ValueError:
        classes = ()
    if len(classes) > 1:
        raise EmbeddingError(f"{name!r} stands for {' and '.join(classes)}. Name one of them.")
    if classes and classes[0] in names:
        return names.index(classes[0])
    near = difflib.get_close_matches(key, list(rows), n=3)
    nearest = f" The nearest names are {', '.join(near)}." if near else ""
    raise EmbeddingError(f"no text embedding for {name!r}.{nearest} `python -m uniseg.embeddings` prints all; "
                         "tools/make_embeddings.py --names FILE makes a table with more.")


def class_embeddings(names: Sequence[str], encoding: str = "v3", path: str | Path | None = None,
                     seed: int = 0) -> np.ndarray:
    """The vectors w of Eq. (1) for the classes of a model, in the order of `names`: (K, T) float32.

    encoding: v1, v2, v3    text embeddings with that prompt; T is the width of the table
              one-hot       the identity matrix; T = K, so that one more class makes all vectors longer
              random        normal random numbers, which the model learns; T = 512, and one more class changes no other
    path:     a table of your own (None: the shipped table); seed: for `random`

    Raises EmbeddingError for an unknown encoding, an unusable table or a name without a row.
    """
    names = list(names)
    if encoding not in ENCODINGS:
        raise EmbeddingError(f"unknown encoding {encoding!r}. Use one of {', '.join(ENCODINGS)}.")
    if encoding == "one-hot":
        return np.eye(len(names), dtype=np.float32)                                                     # (K, K)
    if encoding == "random":
        return np.random.default_rng(seed).standard_normal((len(names), RANDOM_WIDTH)).astype(np.float32)  # (K, 512)
    table = load_table(path)
    return table[encoding][[find_row(table, name) for name in names]].astype(np.float32)                # (K, T)


def provenance(path: str | Path | None = None, table: np.ndarray | None = None) -> dict[str, Any]:
    """What a checkpoint records about its table of embeddings: {"encoder", "width", "rows", "sha256" of the file}.

    table: of the file, where it has been read already
    """
    path = Path(path or default_path())
    table = load_table(path) if table is None else table
    encoders = list(dict.fromkeys(table["encoder"].tolist()))
    return {"encoder": ", ".join(encoders), "width": table.dtype["v3"].shape[0], "rows": len(table),
            "sha256": file_sha256(path)}


def cosines(vectors: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """The cosine of the angle between every row and every other row: (rows, T), (n, T) -> (rows, n).

    others: (n, T); None: the rows themselves
    """
    others = vectors if others is None else others
    unit, other = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors, others))
    return unit @ other.T


def print_row(table: np.ndarray, row: int, prompt: str) -> None:
    """Print one row of a table: its prompts, and the cosines among it and its nearest names with `prompt`."""
    vectors, names = table[prompt], table["name"]
    say(f"{names[row]}  (row {row}, {table['encoder'][row]}, width {table[prompt].shape[1]})")
    for version, template in PROMPTS.items():
        length = np.linalg.norm(table[version][row])
        say(f"  {version}  {template.replace('[CLS]', table['text'][row])!r}, length {length:.2f}")
    near = [row, *(n for n in cosines(vectors[[row]], vectors)[0].argsort()[::-1] if n != row)][:6]
    similar = cosines(vectors[near])
    say(f"  cosines of {prompt} among it and its nearest names")
    for number, (a, of_a) in enumerate(zip(near, similar), 1):
        say("  " + "".join(f"{cosine:7.3f}" for cosine in of_a) + f"  {number} {names[a]}")


def print_table(table: np.ndarray, origin: dict[str, Any], prompt: str) -> None:
    """Print all names of a table, each with its nearest neighbours. origin: `provenance` of the table."""
    names = table["name"].tolist()
    say(f"{origin['rows']} names, {origin['encoder']}, width {origin['width']}, sha256 {origin['sha256']}")
    for version, template in PROMPTS.items():
        say(f"  {version}  {template}")
    texts = [f"{e['name']}  ({e['text']})" if e["text"] != e["name"].replace("_", " ") else e["name"] for e in table]
    width = max(map(len, texts)) + 2
    if len(names) > MOST_COMPARED:
        say(f"{len(names):,} rows are too many to compare all of them; name one to see its nearest.")
        return say("\n".join(texts))
    similar = cosines(table[prompt])
    np.fill_diagonal(similar, -1.0)
    say(f"{'name (and text, where it is another)':{width}}nearest by cosine of {prompt}")
    for text, row in zip(texts, similar):
        near = row.argsort()[::-1][:NEIGHBOURS]
        say(f"{text:{width}}{', '.join(f'{names[n]} {row[n]:.3f}' for n in near)}")


def build_parser() -> Parser:
    """The options of `python -m uniseg.embeddings`."""
    parser = Parser(prog="python -m uniseg.embeddings",
                    description="Print the table of text embeddings (Section 4.4.1).",
                    epilog="Exit codes: 0 done; 2 the table or the name is of no use.")
    parser.add_argument("name", nargs="?", help="look up this class; without it, print all classes")
    parser.add_argument("--path", type=Path, help="another table; default: the shipped one")
    parser.add_argument("--prompt", choices=tuple(PROMPTS), default="v3", help="which vectors to compare; default: v3")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command `python -m uniseg embeddings`. Exits with code 2 if the table or the name is not usable."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        table = load_table(args.path)
        origin = provenance(args.path, table)
        row = None if args.name is None else find_row(table, args.name)
    except EmbeddingError as error:
        error_line(error)
        parser.exit(2)
    if row is not None:
        print_row(table, row, args.prompt)
    else:
        print_table(table, origin, args.prompt)


if __name__ == "__main__":
    main()
