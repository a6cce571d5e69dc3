"""uniseg: the CLIP-Driven Universal Model for abdominal CT (Liu et al., Medical Image Analysis 2024).

Reading order: taxonomy, volume, data, heads, model, losses, train, infer.

>>> import uniseg
>>> model = uniseg.load()                        # built-in weights
>>> segmentation = model.segment("ct.nii.gz")    # doctest: +SKIP
"""

__version__ = "0.1.0"

NOT_A_MEDICAL_DEVICE = "Research software, not a medical device: not for diagnosis or treatment."


def load(weights=None, device="auto"):
    """A Segmenter with the built-in weights, or those of a checkpoint file. See infer.load."""
    from .infer import load as load_segmenter  # torch is imported here, not by `import uniseg`

    return load_segmenter(weights, device)
