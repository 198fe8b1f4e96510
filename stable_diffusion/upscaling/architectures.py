"""Which network an upscaler's file holds, told by its keys and shapes; what its tensors are called there.

No other file knows the names in upscalers' files. The reference is spandrel (its architectures' `detect` and `load`).
Needs no MLX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedCheckpointError
from ..model_io.name_table import Names, table

Shapes = Mapping[str, tuple[int, ...]]

# Where trainers nest the weights, in order of preference, and what they put in front of every name.
NESTS = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
PREFIXES = ("module.", "netG.", "generator.")

MAX_DOUBLINGS = 6  # of the size: 64 times

ESRGAN, COMPACT, SPAN, SWINIR = "ESRGAN", "Compact", "SPAN", "SwinIR"


@dataclass(frozen=True)
class Description:
    """A file's network: its architecture, the arguments that build it, its scale, and the names in the file."""

    architecture: str
    scale: int
    sizes: dict[str, Any]
    names: Names
    merged: bool = False  # several convolutions of the file are one here (SPAN)


@dataclass(frozen=True)
class Architecture:
    """An architecture and its tell-tale keys: all of one of the `marks` are in its files."""

    title: str
    marks: tuple[tuple[str, ...], ...]
    describe: Callable[[Shapes], Description] | None = None  # None: not built here

    def fits(self, keys: Mapping[str, Any]) -> bool:
        """Whether a file with these keys is of this architecture."""
        return any(all(key in keys for key in mark) for mark in self.marks)


def own_keys(keys: Iterable[str]) -> dict[str, str]:
    """The network's names of its tensors -> the file's keys, without what trainers wrap around them."""
    found = {key: key for key in keys}
    for nest in NESTS:
        inner = {name.removeprefix(f"{nest}."): key for name, key in found.items() if name.startswith(f"{nest}.")}
        # ESRGAN's old files begin with "model.0", which is no nest but the network itself.
        if inner and not (nest == "model" and any(name[0].isdigit() for name in inner)):
            found = inner
            break
    for prefix in PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): key for name, key in found.items()}
    return found


def architecture_of(keys: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a network with tensors of these names, built or not; None if it is not known."""
    return next((each for each in ARCHITECTURES if each.fits(keys)), None)


def describe(shapes: Shapes) -> Description:
    """What a network with tensors of these names and shapes is.

    Raises `UnsupportedCheckpointError`, with the architecture's name if it is known; KeyError, IndexError or ValueError
    for shapes that make no sense.
    """
    found = architecture_of(shapes)
    if found is None:
        raise UnsupportedCheckpointError(f"holds no upscaler that is known here: {IN_WORDS} are")
    if found.describe is None:
        raise UnsupportedCheckpointError(f"holds {found.title}, which is not built here: {IN_WORDS} are")
    return found.describe(shapes)


# --- Those that are built


def _esrgan(shapes: Shapes) -> Description:
    old = "model.0.weight" in shapes
    if old:
        last = max(_numbers(shapes, "model"))
        names = _old_names(last, (last - 4) // 3, _count(shapes, "model.1.sub") - 1)
    else:
        names = _ESRGAN_NAMES
    found = {place.ours: shape for key, shape in shapes.items() for place in names.read(key)}
    doublings = sum(re.fullmatch(r"conv_up\d+\.weight", key) is not None for key in found)
    channels, inputs, *_ = found["conv_first.weight"]
    outputs = found["conv_last.weight"][0]
    unshuffle = math.isqrt(inputs // outputs) if inputs in (4 * outputs, 16 * outputs) else 1
    _only_rgb("ESRGAN", inputs // unshuffle**2, outputs)
    sizes = {
        "channels": channels,
        "growth": found["body.0.rdb1.conv1.weight"][0],
        "blocks": _count(found, "body"),
        "doublings": doublings,
        "unshuffle": unshuffle,
        "plus": "body.0.rdb1.conv1x1.weight" in found,
    }
    return Description(ESRGAN, 2**doublings // unshuffle, sizes, names)


_ESRGAN_NAMES = table("""
    RRDB_trunk.{n}.RDB{n}    body.{n}.rdb{n}
    trunk_conv               conv_body
    upconv{n}                conv_up{n}
    HRconv                   conv_hr
""")  # of BSRGAN and RealSR; Real-ESRGAN's are those used here


def _old_names(last: int, doublings: int, blocks: int) -> Names:
    """Those of ESRGAN's first release: one sequence, whose numbers depend on the sizes."""
    if doublings > MAX_DOUBLINGS:
        raise ValueError(f"a sequence of {last} layers")
    rows = [
        "model.1.sub.{n}.RDB{n}.conv{n}.0 body.{n}.rdb{n}.conv{n}",
        "model.1.sub.{n}.RDB{n}.conv1x1 body.{n}.rdb{n}.conv1x1",
        f"model.1.sub.{blocks} conv_body",
        "model.0 conv_first",
        *(f"model.{3 * i} conv_up{i}" for i in range(1, doublings + 1)),
        f"model.{last - 2} conv_hr",
        f"model.{last} conv_last",
    ]
    return table("\n".join(rows))


def _compact(shapes: Shapes) -> Description:
    last = _count(shapes, "body") - 1
    channels, inputs, *_ = shapes["body.0.weight"]
    scale = _shuffled_scale("Compact", inputs, shapes[f"body.{last}.weight"][0])
    return Description(COMPACT, scale, {"channels": channels, "convolutions": last // 2 - 1, "scale": scale}, Names())


def _span(shapes: Shapes) -> Description:
    channels, inputs, *_ = shapes["conv_1.sk.weight"]
    scale = _shuffled_scale("SPAN", inputs, shapes["upsampler.0.weight"][0])
    sizes = {"channels": channels, "scale": scale, "normalised": "no_norm" not in shapes}
    names = table("upsampler.0 upsampler.conv", ignored=r"^no_norm$|\.eval_conv\.")
    return Description(SPAN, scale, sizes, names, merged=True)


def _swinir(shapes: Shapes) -> Description:
    names = table(
        """
        layers.{n}.residual_group.blocks.{n}    layers.{n}.blocks.{n}
        mlp.fc{n}                fc{n}
        patch_embed.norm         patch_norm
        conv_first.1             conv_first
        conv_before_upsample.0   conv_before_upsample
        upsample.0               upsample.0.conv
        upsample.2               upsample.1.conv
        upsample.4               upsample.2.conv
        """,
        _SWINIR_CONVOLUTIONS[three := "conv_after_body.0.weight" in shapes],
        ignored=r"\.(attn_mask|relative_position_index)$",
    )
    found = {place.ours: shape for key, shape in shapes.items() for place in names.read(key)}
    channels, inputs, *_ = found["conv_first.weight"]
    unshuffle = math.isqrt(inputs // 3) if "conv_first.1.weight" in shapes else 1
    outputs = found["conv_last.weight"][0] if "conv_last.weight" in found else 3
    _only_rgb("SwinIR", inputs // unshuffle**2, outputs)
    layers = range(_count(found, "layers"))
    tables = [found[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in layers]
    upsampler, scale = _swinir_end(found)
    sizes = {
        "channels": channels,
        "depths": tuple(_count(found, f"layers.{i}.blocks") for i in layers),
        "heads": tuple(heads for _, heads in tables),
        "window": (math.isqrt(tables[0][0]) + 1) // 2,
        "hidden": found["layers.0.blocks.0.fc1.weight"][0],
        "three": three,
        "upsampler": upsampler,
        "scale": scale,
        "unshuffle": unshuffle,
    }
    return Description(SWINIR, scale // unshuffle, sizes, names)


# By whether there are three convolutions with activations in between, or one.
_SWINIR_CONVOLUTIONS = {
    True: """
        conv.0             conv.layers.0
        conv.2             conv.layers.1
        conv.4             conv.layers.2
        conv_after_body.0  conv_after_body.layers.0
        conv_after_body.2  conv_after_body.layers.1
        conv_after_body.4  conv_after_body.layers.2
    """,
    False: """
        layers.{n}.conv    layers.{n}.conv.layers.0
        conv_after_body    conv_after_body.layers.0
    """,
}


def _swinir_end(found: Shapes) -> tuple[str, int]:
    """How a SwinIR becomes larger, and its scale."""
    if "conv_up1.weight" in found:
        return "nearest+conv", 2 ** sum(re.fullmatch(r"conv_up\d+\.weight", key) is not None for key in found)
    steps = [found[f"upsample.{i}.conv.weight"] for i in range(_count(found, "upsample"))]
    if "conv_before_upsample.weight" in found:
        return "pixelshuffle", math.prod(math.isqrt(outputs // inputs) for outputs, inputs, *_ in steps)
    return ("pixelshuffledirect", math.isqrt(steps[0][0] // 3)) if steps else ("", 1)


def _numbers(keys: Iterable[str], name: str) -> set[int]:
    """The numbers that stand after `name`."""
    found = (key[len(name) + 1 :].split(".")[0] for key in keys if key.startswith(f"{name}."))
    return {int(number) for number in found if number.isdigit()}


def _count(keys: Iterable[str], name: str) -> int:
    """How many numbers stand after `name`. Raises ValueError if one is missing in between."""
    numbers = _numbers(keys, name)
    if numbers and max(numbers) != len(numbers) - 1:
        raise ValueError(f"{name} is not numbered from 0 to {len(numbers) - 1}")
    return len(numbers)


def _shuffled_scale(title: str, inputs: int, shuffled: int) -> int:
    """The scale of a network that ends in scale x scale x channels."""
    scale = math.isqrt(shuffled // 3)
    _only_rgb(title, inputs, 3 if 3 * scale**2 == shuffled else 1)
    return scale


def _only_rgb(title: str, inputs: int, outputs: int) -> None:
    if (inputs, outputs) != (3, 3):
        raise UnsupportedCheckpointError(
            f"holds {title} that turns {inputs} channels into {outputs}; only those from RGB to RGB are built"
        )


ESRGAN_TITLE, COMPACT_TITLE = "ESRGAN (Real-ESRGAN, BSRGAN)", "Compact (SRVGG)"
BUILT = (
    Architecture(
        SWINIR, (("layers.0.residual_group.blocks.0.attn.relative_position_bias_table", "conv_after_body.weight"),
                 ("layers.0.residual_group.blocks.0.attn.relative_position_bias_table", "conv_after_body.0.weight")),
        _swinir,
    ),
    Architecture(
        SPAN,
        (("conv_1.sk.weight", "block_1.c1_r.sk.weight", "conv_cat.weight", "conv_2.sk.weight", "upsampler.0.weight"),),
        _span,
    ),
    Architecture(
        ESRGAN_TITLE,
        (
            ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
            ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_body.weight", "conv_last.weight"),
            ("conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight", "trunk_conv.weight", "conv_last.weight"),
        ),
        _esrgan,
    ),
    Architecture(COMPACT_TITLE, (("body.0.weight", "body.1.weight", "body.2.weight"),), _compact),
)  # fmt: skip
IN_WORDS = f"{', '.join(each.title for each in BUILT[:-1])} and {BUILT[-1].title}"

# Those that are not built, by the same name as in spandrel: tell-tale keys, and behind | others in their place.
_FOREIGN = """
    HAT             layers.0.residual_group.blocks.0.conv_block.cab.0.weight
    ATD             layers.0.residual_group.layers.0.attn_atd.scale
    DRCT            layers.0.swin1.attn.qkv.weight
    DAT             before_RG.1.weight layers.0.blocks.0.attn.dwconv.0.weight
    RGT             layers.0.blocks.0.attn.attns.0.rpe_biases layers.0.blocks.0.gamma
    GRL             layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale
    Swin2SR         layers.0.residual_group.blocks.0.attn.logit_scale
    CRAFT           layers.0.residual_group.hf_blocks.0.attn.temperature
    GFPGAN          toRGB.0.weight stylegan_decoder.style_mlp.1.weight
    RestoreFormer   quantize.embedding.weight encoder.conv_in.weight
    CodeFormer      quantize.embedding.weight encoder.blocks.0.weight
    LaMa            model.1.bn_l.running_mean | model.model.1.bn_l.running_mean
    OmniSR          residual_layer.0.residual_layer.0.layer.0.fn.0.weight
    FBCNN           qf_pred.0.res.0.weight
    SCUNet          m_head.0.weight m_tail.0.weight
    DRUNet          m_head.weight m_down1.0.res.0.weight m_tail.weight
    Uformer         input_proj.proj.0.weight output_proj.proj.0.weight
    KBNet           encoders.0.0.attgamma | latent.0.ffn.qkv.weight
    DITN            UFONE.0.ITLs.0.attn.temperature
    MMRealSR        am_list.0.fc.0.weight
    RealCUGAN       unet1.conv1_down.weight unet2.conv1.conv.0.weight
    SAFMN           feats.0.safm.mfr.0.weight | feats.0.layers.0.safm.mfr.0.weight
    DCTLSA          B1.body.0.transformer_body.0.blocks.0.attn.qkv.weight
    FFTformer       encoder_level1.0.ffn.fft
    NAFNet          intro.weight middle_blks.0.beta ending.weight
    MixDehazeNet    layer1.blocks.0.conv3_19.weight
    IPT             head.0.1.body.0.weight sub_mean.weight
    PLKSR           feats.1.lk.conv.weight | feats.1.lk.convs.0.weight | feats.1.lk.mn_conv.weight
    RetinexFormer   body.0.denoiser.embedding.weight
    HVI-CIDNet      HVE_block0.1.weight
    SeemoRe         body.0.local_block.norm_1.weight
    MoESR           blocks.0.blocks.0.conv.dwconv_hw.weight
    MoSR            gblocks.0.weight gblocks.1.fc1.weight
    RCAN            body.0.body.0.body.3.conv_du.0.weight
    FDAT            groups.0.blocks.0.inter.cg.1.weight
    AuraSR          mid_attn.layers.0.0.to_out.weight
    SwiftSRGAN      initial.cnn.depthwise.weight
    SPSR            f_HR_conv1.0.weight
    DnCNN           model.0.weight model.2.weight model.4.weight model.6.weight | model.3.running_mean
"""


def _foreign(line: str) -> Architecture:
    title, keys = line.split(maxsplit=1)
    return Architecture(title, tuple(tuple(mark.split()) for mark in keys.split("|")))


# In the order in which they are looked for: some keys of those that are built occur in others, too.
ARCHITECTURES = (*(_foreign(line.strip()) for line in _FOREIGN.strip().splitlines()), *BUILT)
