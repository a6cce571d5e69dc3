"""The largest volume that is read. A file without imports, so that `infer --help` answers without numpy."""

MAX_VOXELS = 2_000_000_000     # 4 GB as int16; a whole body at 0.7 mm has half of that
