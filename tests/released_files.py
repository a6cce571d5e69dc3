"""Files like the released ones: their containers, names and shapes, with the stand-in weights in them.

The real files (57 to 760 MB) are not part of the project. Names and shapes of the backbones stand in
golden/keys_backbone.json; heads and leftovers are written out here.
"""

import json

import torch

from stand_in import GOLDEN, stand_in


def heads(embedding_rows, bottleneck, decoder, shared=True):
    """{name: shape} of the heads, without prefix."""
    shapes = {"organ_embedding": (embedding_rows, 512),
              "precls_conv.0.weight": (decoder,), "precls_conv.0.bias": (decoder,),
              "precls_conv.2.weight": (8, decoder, 1, 1, 1), "precls_conv.2.bias": (8,),
              "GAP.0.weight": (bottleneck,), "GAP.0.bias": (bottleneck,),
              "GAP.3.weight": (256, bottleneck, 1, 1, 1), "GAP.3.bias": (256,)}
    if shared:
        return shapes | {"controller.weight": (153, 512, 1, 1, 1), "controller.bias": (153,),
                         "text_to_vision.weight": (256, 512), "text_to_vision.bias": (256,)}
    for i in range(embedding_rows):
        shapes |= {f"controllers.{i}.0.weight": (512, 768, 1, 1, 1), f"controllers.{i}.0.bias": (512,),
                   f"controllers.{i}.2.weight": (153, 512, 1, 1, 1), f"controllers.{i}.2.bias": (153,)}
    return shapes


def backbone(name):
    """{name: shape} of a backbone, without prefix."""
    entries = json.loads((GOLDEN / "keys_backbone.json").read_text())[name]["entries"]
    return {key: tuple(shape) for key, shape in entries.items()}


def running_statistics():
    """What the released U-Nets store beside the weights of their 14 norms."""
    shapes = {}
    for key, shape in backbone("unet").items():
        if key.endswith("bn1.weight"):
            stem = key.removesuffix("weight")
            shapes |= {stem + "running_mean": shape, stem + "running_var": shape, stem + "num_batches_tracked": ()}
    return shapes


def prefixed(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


def transformer_alone():
    """model_swinvit.pt: the transformer without `swinViT.`, its MLP layers named fc1 and fc2, and the pretext heads."""
    shapes = {k.removeprefix("swinViT."): s for k, s in backbone("swin_unetr").items() if k.startswith("swinViT.")}
    shapes = {k.replace("linear1", "fc1").replace("linear2", "fc2"): s for k, s in shapes.items()}
    return shapes | {"norm.weight": (768,), "norm.bias": (768,),
                     "rotation_head.weight": (4, 768), "rotation_head.bias": (4,),
                     "contrastive_head.weight": (512, 768), "contrastive_head.bias": (512,),
                     "conv.weight": (768, 1, 32, 32, 32), "conv.bias": (1,)}


FILES = {   # name: (container, {entry: shape})
    "clip_driven_universal_swin_unetr.pth": ("net", prefixed("module.", backbone("swin_unetr") | heads(32, 768, 48))),
    "clip_driven_universal_unet.pth": ("net", prefixed(
        "module.", prefixed("backbone.", backbone("unet") | running_statistics()) | heads(32, 512, 64))),
    "continual_swin_unetr_38class.pth": (
        "net", prefixed("module.", backbone("swin_unetr") | heads(38, 768, 48, shared=False))),
    "supervised_suprem_swinunetr_2100.pth": ("net", prefixed(
        "module.", prefixed("backbone.", backbone("swin_unetr")) | heads(32, 768, 48))),
    "supervised_suprem_unet_2100.pth": ("net", prefixed(
        "module.", prefixed("backbone.", backbone("unet") | running_statistics()) | heads(32, 512, 64))),
    "supervised_suprem_segresnet_2100.pth": ("net", prefixed("module.", backbone("segresnet") | {
        "conv_final.0.weight": (16,), "conv_final.0.bias": (16,),
        "conv_final.2.conv.weight": (25, 16, 1, 1, 1), "conv_final.2.conv.bias": (25,)})),
    "swin_unetr.base_5000ep_f48_lr2e-4_pretrained.pt": ("state_dict", backbone("swin_unetr") | {
        "out.conv.conv.weight": (14, 48, 1, 1, 1), "out.conv.conv.bias": (14,)}),
    "model_swinvit.pt": ("state_dict", prefixed("module.", transformer_alone())),
    "Genesis_Chest_CT.pt": ("state_dict", prefixed("module.", backbone("unet") | running_statistics() | {
        "out_tr.final_conv.weight": (1, 64, 1, 1, 1), "out_tr.final_conv.bias": (1,)})),
}


def released_state(file):
    """The state dict of a released file, filled by the rule of the golden figures."""
    index = position_index()
    return {name: index if name.endswith("relative_position_index") else
            torch.zeros((), dtype=torch.int64) if name.endswith("num_batches_tracked") else
            torch.from_numpy(stand_in(name, shape)) for name, shape in FILES[file][1].items()}


def position_index():
    """Index of the relative positions in a 7x7x7 window, by a slow loop: the buffer that Swin files carry."""
    places = [(i, j, k) for i in range(7) for j in range(7) for k in range(7)]
    rows = [[(a[0] - b[0] + 6) * 169 + (a[1] - b[1] + 6) * 13 + (a[2] - b[2] + 6) for b in places] for a in places]
    return torch.tensor(rows)


def write_released(path, file, **more):
    """A file like the released one at `path`; more: other keys of the container (optimizer, epoch, ...)."""
    torch.save({FILES[file][0]: released_state(file), **more}, path)
    return path
