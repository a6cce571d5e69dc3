"""The names by which options choose a network's parts, for help pages that must not import torch.

backbones/__init__.py, heads.py and baselines.py have what they stand for; a test holds the names to those.
"""

BACKBONES = ("swin_unetr", "unet", "segresnet")      # image encoder and decoder, Section 3.2.1
LPGS = ("independent", "shared")                     # the MLPs of Eq. (1): one for each class, or one for all
BASELINES = ("lwf", "ilt", "plop")                   # ways to extend a network with a softmax, Section 5.1.2
PRECISIONS = ("auto", "float32", "bf16", "fp16")     # of inference; machine/device.py chooses for "auto"
