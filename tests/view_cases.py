"""Small cases for the tests of the viewer: a CT, its masks and its statistics, without a network."""

import nibabel as nib
import numpy as np

from uniseg import taxonomy
from uniseg.imaging.bits import pack
from uniseg.imaging.grid import voxel_volume_mm3
from uniseg.imaging.merging import merge_masks
from uniseg.imaging.volume import read_ct, to_ras
from uniseg.viewer.view import view_page


def statistics(masks, affine, name="ct.nii.gz", **more):
    """The JSON of a result with these masks, {class: bool (X, Y, Z)}, as far as the viewer reads it."""
    ml = voxel_volume_mm3(affine) / 1000
    classes = {}
    for n, (of_class, mask) in enumerate(masks.items()):
        value = taxonomy.BY_NAME[of_class].index if of_class in taxonomy.BY_NAME else 33 + n
        classes[of_class] = {"label": value, "voxels": int(mask.sum()), "ml": round(float(mask.sum() * ml), 3),
                             "touches_border": False}
    return {"input": name, "warnings": [], "weights": {"file": "tiny.pt"}, "classes": classes, **more}


def arguments(hu, masks, affine, stats=None):
    """The arguments of view_page for a CT and masks as a file stores them, (X, Y, Z), with its affine."""
    ct = read_ct(nib.Nifti1Image(hu, affine))
    stats = stats or statistics(masks, affine)
    ras = {name: to_ras(mask, affine)[0] for name, mask in masks.items()}
    values = [stats["classes"][name]["label"] for name in masks]
    label_map = merge_masks(list(masks), values, lambda k: list(ras.values())[k], ct.array.shape)
    return ct, pack(list(ras.values())), label_map, list(masks), stats


def page_of(hu, masks, affine, stats=None, **more):
    """The viewer of a CT and masks as a file stores them."""
    return view_page(*arguments(hu, masks, affine, stats), **more)


def ball(shape, centre, radius):
    """A mask of all voxels within `radius` voxels of a centre."""
    away = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (away ** 2).sum(axis=0) <= radius ** 2
