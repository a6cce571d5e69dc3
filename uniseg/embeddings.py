"""Text embeddings of the class names (Section 4.4.1, Table 7): what replaces one-hot labels in the paper.

`embeddings.npy` is one structured numpy array, one row a name: Table 2's classes in order, then further anatomy and
lesions, so that many a new class needs no encoder at hand. `tools/make_embeddings.py` makes the file. Vectors are raw,
not scaled to length 1, as in the authors' models.

Differs from the paper: the shipped file holds all-MiniLM-L6-v2 (384 numbers a prompt, the mean over tokens) where the
paper has CLIP ViT-B/32 (512 numbers). The tool makes that one too, from a local copy of CLIP's weights; released
checkpoints carry their own CLIP vectors.

    python -m uniseg.embeddings               prints the table, each name with its nearest neighbours
    python -m uniseg.embeddings "liver cyst"  looks one name up
"""

import difflib
import hashlib
from pathlib import Path

import numpy as np

from . import taxonomy
from .machine.console import Parser, error_line, say

# V1, V2, V3 of Section 4.4.1; V3 is best in Table 7. "a aorta" is how the paper has it.
PROMPTS = {
    "v1": "A photo of a [CLS]",
    "v2": "There is [CLS] in this computerized tomography",
    "v3": "A computerized tomography of a [CLS]",
}
ENCODINGS = (*PROMPTS, "one-hot", "random")
NEIGHBOURS = 3      # of a name, in the printed table
RANDOM_WIDTH = 512  # that of CLIP, so that heads have the paper's size


class EmbeddingError(ValueError):
    """The table of embeddings, or a name that is asked of it, is not usable; the message says what to do."""


def table_dtype(width):
    """Fields of one row for vectors of `width` numbers."""
    strings = [("name", "U64"), ("text", "U96"), ("encoder", "U32")]
    return np.dtype(strings + [(version, np.float32, (width,)) for version in PROMPTS])


def default_path():
    """The shipped table: beside this file when installed, at the top level in a checkout."""
    installed = Path(__file__).with_name("embeddings.npy")
    checkout = installed.parents[1] / "embeddings.npy"
    for path in (installed, checkout):
        if path.is_file():
            return path
    raise EmbeddingError(f"{installed}: no such file, nor {checkout}. Install uniseg again, or give the path of a table that "
                         "tools/make_embeddings.py made.")


def load_table(path=None):
    """The checked table of embeddings: a structured array with the fields of `table_dtype`.

    path: an own file, whose names need only be unique. None: the shipped one, which starts with Table 2's classes in order.
    """
    own, path = path is not None, Path(path or default_path())

    def fail(what, todo="Make a table with tools/make_embeddings.py."):
        raise EmbeddingError(f"{path}: {what}. {todo}")

    try:
        with open(path, "rb") as file:
            table = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, MemoryError) as error:
        fail(f"cannot be read as a .npy file ({error})")
    fields = ("name", "text", "encoder", *PROMPTS)
    if table.dtype.names is None or table.ndim != 1:
        fail(f"an array of shape {table.shape} without names, not a table with one row a name")
    if missing := [field for field in fields if field not in table.dtype.names]:
        fail(f"the table has no field {' or '.join(missing)}")
    if not len(table):
        fail("the table has no rows")
    for field in fields:
        kind, found = table.dtype[field].base.kind, table.dtype[field]
        if field in PROMPTS and kind != "f":
            fail(f"the field {field} has the type {found}, not float numbers")
        if field not in PROMPTS and (kind != "U" or found.shape):
            fail(f"the field {field} has the type {found}, not text")
    shapes = [table.dtype[version].shape for version in PROMPTS]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
        fail(f"the vectors v1, v2, v3 have the shapes {', '.join(map(str, shapes))}, not one width")
    names = table["name"].tolist()
    if twice := sorted({name for name in names if names.count(name) > 1}):
        fail(f"the name {twice[0]!r} stands in {names.count(twice[0])} rows", "Keep one of them.")
    for version in PROMPTS:
        norms = np.linalg.norm(table[version].astype(np.float64), axis=1)  # (rows,)
        if (bad := ~np.isfinite(norms) | (norms == 0)).any():
            fail(f"the {version} vector of {names[bad.argmax()]!r} is zero or not finite")
    if not own and tuple(names[:len(taxonomy.NAMES)]) != taxonomy.NAMES:
        row = next(i for i, name in enumerate(taxonomy.NAMES) if names[i:i + 1] != [name])
        fail(f"row {row} is {names[row] if row < len(names) else 'absent'}, not {taxonomy.NAMES[row]} as in uniseg.taxonomy",
             "Run tools/make_embeddings.py after a change of classes.")
    return table


def find_row(table, name):
    """Row number of a class: by name, by an alias of the taxonomy, or by the text of the prompt, whatever the spelling."""
    names = table["name"].tolist()
    if name in names:
        return names.index(name)
    key = taxonomy.normalise_name(name)
    rows = {taxonomy.normalise_name(text): row for row, text in reversed(list(enumerate(table["text"].tolist())))}
    rows |= {taxonomy.normalise_name(own): row for row, own in enumerate(names)}
    if key in rows:
        return rows[key]
    try:
        found = taxonomy.resolve(name)
    except ValueError:
        found = ()
    if len(found) > 1:
        raise EmbeddingError(f"{name!r} stands for {' and '.join(found)}. Name one of them.")
    if found and found[0] in names:
        return names.index(found[0])
    near = difflib.get_close_matches(key, list(rows), n=3)
    nearest = f" The nearest names are {', '.join(near)}." if near else ""
    raise EmbeddingError(f"no text embedding for {name!r}.{nearest} `python -m uniseg.embeddings` prints all; "
                         "tools/make_embeddings.py --names FILE makes a table with more.")


def class_embeddings(names, encoding="v3", path=None, seed=0):
    """The vectors w of Eq. (1) for a model's classes, float32 (K, T), in the order of `names`.

    encoding: v1 / v2 / v3  text embeddings, T the width of the table
              one-hot       the identity, T = K: a class's position in `names`; a class more makes all vectors longer
              random        seeded normal numbers, T = 512, that the model learns; a class more leaves the others as they are
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


def provenance(path=None):
    """What a checkpoint notes about the table it was trained with: encoder, width, number of rows, SHA-256 of the file."""
    path = Path(path or default_path())
    table = load_table(path)
    encoders = list(dict.fromkeys(table["encoder"].tolist()))
    return {"encoder": ", ".join(encoders), "width": table.dtype["v3"].shape[0], "rows": len(table),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def cosines(vectors):
    """Cosine of every pair of rows: (rows, T) -> (rows, rows)."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def main(argv=None):
    parser = Parser(prog="python -m uniseg.embeddings", description="Print the table of text embeddings.")
    parser.add_argument("name", nargs="?", help="look this class up; without it, print all")
    parser.add_argument("--path", type=Path, help="another table; default: the shipped one")
    parser.add_argument("--prompt", choices=tuple(PROMPTS), default="v3", help="which vectors to compare; default: v3")
    args = parser.parse_args(argv)
    try:
        table, origin = load_table(args.path), provenance(args.path)
        row = None if args.name is None else find_row(table, args.name)
    except EmbeddingError as error:
        error_line(error)
        parser.exit(2)
    similar = cosines(table[args.prompt])
    if row is not None:
        say(f"{table['name'][row]}  (row {row}, {table['encoder'][row]}, width {origin['width']})")
        for version, prompt in PROMPTS.items():
            length = np.linalg.norm(table[version][row])
            say(f"  {version}  {prompt.replace('[CLS]', table['text'][row])!r}, length {length:.2f}")
        near = [row, *(n for n in similar[row].argsort()[::-1] if n != row)][:6]
        say(f"  cosines of {args.prompt} among it and its nearest names")
        for place, a in enumerate(near, 1):
            say("  " + "".join(f"{similar[a, b]:7.3f}" for b in near) + f"  {place} {table['name'][a]}")
        return
    say(f"{origin['rows']} names, {origin['encoder']}, width {origin['width']}, sha256 {origin['sha256']}")
    for version, prompt in PROMPTS.items():
        say(f"  {version}  {prompt}")
    np.fill_diagonal(similar, -1.0)
    names = table["name"].tolist()
    texts = [f"{e['name']}  ({e['text']})" if e["text"] != e["name"].replace("_", " ") else e["name"] for e in table]
    width = max(map(len, texts)) + 2
    say(f"{'name (and text, where it is another)':{width}}nearest by cosine of {args.prompt}")
    for text, row in zip(texts, similar):
        near = row.argsort()[::-1][:NEIGHBOURS]
        say(f"{text:{width}}{', '.join(f'{names[n]} {row[n]:.3f}' for n in near)}")


if __name__ == "__main__":
    main()
