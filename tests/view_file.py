"""Reads a page of uniseg/viewer back, without the code that wrote it."""

import base64
import gzip
import json
import re

import numpy as np


def block(page, name):
    """The text of the script element with this id."""
    (text,) = re.findall(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', page, re.DOTALL)
    return text


def read_page(page):
    """The data of a page as its script sees them."""
    return json.loads(block(page, "data"))


def read_voxels(page):
    """(bytes, codes) of a viewer: arrays (D, H, W) of the CT's uint8 and of the numbers of combinations."""
    grid = read_page(page)["grid"]
    ct, codes = (np.frombuffer(gzip.decompress(base64.b64decode(block(page, name), validate=True)), np.uint8)
                 for name in ("ct", "codes"))
    low, *high = (summed_up(part, grid["shape"]) for part in codes.reshape(grid["bytes_per_code"], -1))
    return summed_up(ct, grid["shape"]), low + 256 * high[0].astype(int) if high else low


def summed_up(differences, shape):
    return np.cumsum(differences.reshape(shape, order="F"), axis=0, dtype=np.uint8)


def read_hu(page):
    """HU (D, H, W) as the viewer names them."""
    return np.array(read_page(page)["hu_of_byte"])[read_voxels(page)[0]]


def read_mask(page, title):
    """The mask of a class, bool (D, H, W), from the combinations."""
    data = read_page(page)
    position = [one["title"] for one in data["classes"]].index(title)
    return np.array([position in those for those in data["combinations"]])[read_voxels(page)[1]]


def at_mm(page, mm):
    """The index of the voxel at a position in mm, not rounded."""
    return (np.linalg.inv(read_page(page)["grid"]["affine"]) @ [*mm, 1.0])[:3]
