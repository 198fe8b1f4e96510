"""The U-Net of latent diffusion (Rombach et al. 2022): noisy latents, time and text -> prediction.

The reference is diffusers' UNet2DConditionModel (unet_2d_condition.py, unet_2d_blocks.py, transformer_2d.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from . import ops
from .backend import has_gpu, mx, nn
from .config import ONE_RESNET, UNetConfig
from .diffusion.network import Attend, Conditioning, Extras, Tap
from .layers import Attention, Conv2d, Downsample, GroupNorm, ResnetBlock, Upsample

# Keys and values of one transformer block, for "attn2", and for "attn1" if it too attends to the text. In a tapped call
# also "tap", a function of queries, keys and "rows"; where something else attends, "attend", by layer.
BlockContext = dict[str, Any]
# The same of all blocks of one transformer, and of all transformers of one level.
LevelContext = list[list[BlockContext]]
SCORE, NEGATIVE_SCORE = 6.0, 2.5  # of a picture's beauty, that SDXL's refiner aims at and away from


def sinusoidal_embedding(values: mx.array, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> mx.array:
    """Sinusoids (Vaswani et al. 2017) of values (N,), float32: (N, channels), as in diffusers embeddings.py."""
    half = channels // 2
    rates = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(10000) / (half - freq_shift)))
    angles = values.astype(mx.float32)[:, None] * rates
    waves = [mx.cos(angles), mx.sin(angles)] if flip_sin_to_cos else [mx.sin(angles), mx.cos(angles)]
    return mx.pad(mx.concatenate(waves, axis=-1), [(0, 0), (0, channels % 2)])


class TimestepEmbedding(nn.Module):
    """Two linear layers over sinusoids (B, inputs) -> (B, outputs); `cond_proj` adds an embedded guidance weight."""

    def __init__(self, inputs: int, outputs: int, act: str, condition: int | None = None):
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs)
        if condition is not None:
            self.cond_proj = nn.Linear(condition, inputs, bias=False)
        self.linear_2 = nn.Linear(outputs, outputs)
        self.act = ops.ACTIVATIONS[act]

    def __call__(self, x: mx.array, condition: mx.array | None = None) -> mx.array:
        if condition is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(self.act(self.linear_1(x)))


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj_in = nn.Linear(channels, 8 * channels)
        self.proj_out = nn.Linear(4 * channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj_out(ops.geglu(self.proj_in(x)))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a layer norm and with a residual."""

    def __init__(self, channels: int, context: int, heads: int, head_dim: int, only_cross: bool, upcast: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, context if only_cross else channels, heads, head_dim, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context, heads, head_dim, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.text_attentions = ("attn1", "attn2") if only_cross else ("attn2",)

    def project_text(self, text: mx.array) -> BlockContext:
        return {name: self[name].keys_values(text) for name in self.text_attentions}

    def __call__(self, x: mx.array, context: BlockContext, size: tuple[int, int]) -> mx.array:
        """x (B, H W, C), of a feature map of the size (H, W)."""
        attend = context.get("attend", {})
        x = x + self.attn1(self.norm1(x), context.get("attn1"), attend.get("attn1"))
        if "tap" in context:
            q = self.attn2.to_q(self.norm2(x)).reshape(len(x), *size, self.attn2.heads, -1).transpose(0, 3, 1, 2, 4)
            context["tap"](q, context["attn2"][0], context["rows"])
        x = x + self.attn2(self.norm2(x), context["attn2"], attend.get("attn2"))
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """Transformer blocks over the positions of a feature map (B, H, W, C).

    `proj_in` and `proj_out` are 1x1 convolutions in some files and linear layers in others; here always the latter.
    """

    def __init__(self, channels: int, heads: int, depth: int, context: int, only_cross: bool, config: UNetConfig):
        super().__init__()
        head_dim = channels // heads
        inner = heads * head_dim
        self.norm = GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = [
            TransformerBlock(inner, context, heads, head_dim, only_cross, config.upcast_attention) for _ in range(depth)
        ]
        self.proj_out = nn.Linear(inner, channels)

    def project_text(self, text: mx.array) -> list[BlockContext]:
        return [block.project_text(text) for block in self.transformer_blocks]

    def __call__(self, x: mx.array, context: list[BlockContext]) -> mx.array:
        batch, height, width, _ = x.shape
        y = self.proj_in(self.norm(x).reshape(batch, height * width, -1))
        for block, block_context in zip(self.transformer_blocks, context, strict=True):
            y = block(y, block_context, (height, width))
        return x + self.proj_out(y).reshape(x.shape)


class UNetLevel(nn.Module):
    """The resnets and transformers at one resolution, on the way down, in the middle or on the way up."""

    def __init__(
        self,
        resnets: list[ResnetBlock],
        attentions: list[Transformer2D],
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ):
        super().__init__()
        self.resnets = resnets
        self.attentions = attentions
        if downsample is not None:
            self.downsample = downsample
        if upsample is not None:
            self.upsample = upsample

    def project_text(self, text: mx.array) -> LevelContext:
        return [attention.project_text(text) for attention in self.attentions]

    def down(self, x: mx.array, time: mx.array, context: LevelContext) -> Iterator[mx.array]:
        """x (B, H, W, C_in) -> the skip connections, one after another; the last one is the level's output."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[i](x, context[i])
            yield x
        if "downsample" in self:
            yield self.downsample(x)

    def middle(self, x: mx.array, time: mx.array, context: LevelContext) -> mx.array:
        x = self.resnets[0](x, time)
        for attention, resnet, attention_context in zip(self.attentions, self.resnets[1:], context, strict=True):
            x = resnet(attention(x, attention_context), time)
        return x

    def up(
        self, x: mx.array, skips: list[mx.array], time: mx.array, context: LevelContext, start: int, stop: int
    ) -> mx.array:
        """Run the resnets from `start` up to `stop`, exclusive; after the last, upsample.

        Pops one of `skips` for each resnet; the next one gives the size to upsample to.
        """
        for i, resnet in islice(enumerate(self.resnets), start, stop):
            x = resnet(mx.concatenate([x, skips.pop()], axis=-1), time)
            if self.attentions:
                x = self.attentions[i](x, context[i])
        if stop == len(self.resnets) and "upsample" in self:
            _, height, width, _ = skips[-1].shape
            x = self.upsample(x, (height, width))
        return x


class UNet(nn.Module):
    """See the module's docstring. A `DenoisingNetwork`: `prepare` once per generation, `predict` once per step.

    Both are built on `project_text` and a call.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        time_channels = config.time_embedding_dim or 4 * channels[0]
        self.conv_in = Conv2d(config.in_channels, channels[0], config.conv_in_kernel)
        self.time_embedding = TimestepEmbedding(channels[0], time_channels, config.act_fn, config.time_cond_proj_dim)
        if config.addition_embed_type == "text_time":
            assert config.projection_class_embeddings_input_dim  # held by UNetConfig.check
            inputs = config.projection_class_embeddings_input_dim
            self.add_embedding = TimestepEmbedding(inputs, time_channels, config.act_fn)
        build = _LevelBuilder(config, time_channels)
        self.down_blocks = [build.down(i) for i in range(len(channels))]
        if config.mid_block_type is not None:
            self.mid_block = build.middle()
        self.up_blocks = [build.up(i) for i in range(len(channels))]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[0], config.norm_eps, config.act_fn)
        self.conv_out = Conv2d(channels[0], config.out_channels, config.conv_out_kernel)

    patch = 1

    @property
    def in_channels(self) -> int:
        """Channels of its input: the latents', and for an inpainting U-Net also the mask's and the masked picture's."""
        return self.config.in_channels

    @property
    def sample_size(self) -> tuple[int, int]:
        """(h, w) in latents, the training size."""
        size = self.config.sample_size or 64
        height, width = size if isinstance(size, tuple) else (size, size)
        return height, width

    @property
    def embeds_guidance(self) -> bool:
        """True for latent consistency models, which take the guidance weight as an input."""
        return self.config.time_cond_proj_dim is not None

    @property
    def branches(self) -> int:
        """The number of skip connections; on the way up each goes into one resnet."""
        return sum(len(level.resnets) for level in self.up_blocks)

    @property
    def values_per_latent(self) -> int:
        """Values at the peak of a call; measured on a CPU (benchmarks/growth.py), estimated for a GPU (no blocks)."""
        return (48 if has_gpu() else 32) * self.config.block_out_channels[0]

    def largest_product(self, rows: int, latents: int) -> int:
        """Multiply-adds of a 3x3 convolution on the way up, at full size."""
        channels = self.config.block_out_channels[0]
        return rows * latents * 9 * channels * 2 * channels

    def prepare(
        self, texts: Sequence[Conditioning], width: int, height: int, dtype: mx.Dtype, cfg_weight: float
    ) -> dict[str, Any]:
        """The arguments of a call besides latents and time, with one row for each text."""
        hidden = mx.concatenate([each.text for each in texts]).astype(dtype)
        context: dict[str, Any] = {"context": self.project_text(hidden)}
        pooled = [each.pooled for each in texts if each.pooled is not None]
        if pooled:
            vectors = mx.concatenate(pooled)
            context |= {"pooled": vectors, "time_ids": self._time_ids(texts, width, height, vectors.shape[-1])}
        return context | ({"cfg_weight": cfg_weight} if self.embeds_guidance else {})

    def _time_ids(self, texts: Sequence[Conditioning], width: int, height: int, pooled: int) -> mx.array:
        """(B, 6): original size, crop and target size in pixels; or (B, 5): an aesthetic score in the target's place.

        Podell et al. 2023, arXiv:2307.01952, section 2.2; diffusers' StableDiffusionXLImg2ImgPipeline.
        """
        size, inputs = self.config.addition_time_embed_dim, self.config.projection_class_embeddings_input_dim
        assert size and inputs  # held by UNetConfig.check
        ends: list[tuple[float, ...]] = [(height, width)] * len(texts)
        if (inputs - pooled) // size == 5:
            ends = [(NEGATIVE_SCORE,) if text.negative else (SCORE,) for text in texts]
        return mx.array([[height, width, 0, 0, *end] for end in ends], mx.float32)

    def predict(self, x: mx.array, t: mx.array, context: dict[str, Any], extras: Extras | None = None) -> mx.array:
        """A call with the context of `prepare`. Supports all extras but `keys_values`."""
        context = dict(context)
        if "cfg_weight" in context:
            context["guidance"] = self.guidance_embedding(context.pop("cfg_weight"))
        return self(x, t, **context, extras=extras)

    def project_text(self, text: mx.array) -> list[LevelContext]:
        """The keys and values of a text's hidden states (B or 1, N, D), for each level in the order of the call."""
        return [level.project_text(text) for level in self._levels()]

    def __call__(
        self,
        x: mx.array,
        t: mx.array,
        context: list[LevelContext],
        pooled: mx.array | None = None,
        time_ids: mx.array | None = None,
        guidance: mx.array | None = None,
        extras: Extras | None = None,
    ) -> mx.array:
        """Predict eps, v or x_0, depending on the checkpoint.

        x (B, H, W, in_channels) of unit variance; t (B,) or (1,), in training steps; `context` from `project_text`,
        its batch B or 1; `pooled` (B, P) and `time_ids` (B, 6 or 5) for `addition_embed_type` "text_time" (SDXL);
        `guidance` (B or 1, time_cond_proj_dim) from `guidance_embedding` (LCM). Returns (B, H, W, out_channels).
        """
        extras = extras or Extras()
        extras.refuse_all_but("This U-Net", "residuals", "tap", "attend", "deep")
        run = partial(ops.by_batch, self._predict, x.shape[0], self)
        watched = None if extras.tap is None and extras.attend is None else (extras.tap, extras.attend)
        rows = None if watched is None else mx.arange(x.shape[0])
        inputs = (x, t, context, pooled, time_ids, guidance, extras.residuals, watched, rows)
        deep = extras.deep
        if deep is None:
            return run(*inputs)
        if deep.features is not None:
            return run(*inputs, deep.branch, deep.features)
        prediction, deep.features = run(*inputs, deep.branch)
        return prediction

    def _predict(
        self,
        x: mx.array,
        t: mx.array,
        context: list[LevelContext],
        pooled: mx.array | None,
        time_ids: mx.array | None,
        guidance: mx.array | None,
        residuals: Sequence[mx.array] | None,
        watched: tuple[Tap | None, Attend | None] | None,
        rows: mx.array | None,
        branch: int | None = None,
        features: mx.array | None = None,
    ) -> Any:
        """The prediction; with a `branch` and no `features`, also the features there.

        `rows` are the places of its rows in the whole batch, for what is `watched`.
        """
        if watched is not None and rows is not None:
            context = _watched(context, self._level_names(), *watched, rows.tolist())  # type: ignore[arg-type]
        time = ops.ACTIVATIONS[self.config.act_fn](self.embed_time(t, pooled, time_ids, guidance, x.dtype))
        if self.config.center_input_sample:
            x = 2 * x - 1
        whole, shallow = features is None, None if branch is None else branch + 1
        skips = list(islice(self._down(x, time, context), None if whole else shallow))
        if features is None:
            x = skips[-1]
            if "mid_block" in self:
                x = self.mid_block.middle(x, time, context[len(self.down_blocks)])
            x = x if residuals is None else x + residuals[-1]
        else:
            x = features
        if residuals is not None:
            added = residuals[: -1 if whole else shallow]
            skips = [skip + residual for skip, residual in zip(skips, added, strict=True)]
        if whole and shallow is not None:
            x = features = self._up(x, skips, time, context, left=shallow)
        x = self.conv_out(self.conv_norm_out(self._up(x, skips, time, context)))
        return (x, features) if whole and shallow is not None else x

    def _down(self, x: mx.array, time: mx.array, context: list[LevelContext]) -> Iterator[mx.array]:
        """The skip connections, from the input on; computed as far as they are asked for."""
        x = self.conv_in(x)
        yield x
        for level, level_context in zip(self.down_blocks, context, strict=False):
            for skip in level.down(x, time, level_context):
                yield skip
            x = skip

    def _up(
        self, x: mx.array, skips: list[mx.array], time: mx.array, context: list[LevelContext], left: int = 0
    ) -> mx.array:
        """The way up, from where the last of `skips` goes in, until only `left` of them are left."""
        place, start, stop = 0, self.branches - len(skips), self.branches - left
        for level, level_context in zip(self.up_blocks, context[-len(self.up_blocks) :], strict=True):
            count = len(level.resnets)
            first, last = max(start - place, 0), min(stop - place, count)
            if first < last:
                x = level.up(x, skips, time, level_context, first, last)
            place += count
        return x

    def guidance_embedding(self, cfg_weight: float | mx.array) -> mx.array:
        """The embedded guidance weight of latent consistency models, (1, time_cond_proj_dim) (Luo et al. 2023).

        For weights (B,), as in training: (B, time_cond_proj_dim).
        """
        channels = self.config.time_cond_proj_dim
        assert channels, "this U-Net takes no guidance weight"
        values = (cfg_weight - 1) * 1000.0
        return sinusoidal_embedding(mx.array(values).reshape(-1), channels, False, freq_shift=1)

    def _levels(self) -> list[UNetLevel]:
        middle = [self.mid_block] if "mid_block" in self else []
        return [*self.down_blocks, *middle, *self.up_blocks]

    def _level_names(self) -> list[str]:
        """The names of the same levels in the parameters."""
        down, up = ([f"{way}_blocks.{i}" for i in range(len(self[f"{way}_blocks"]))] for way in ("down", "up"))
        return [*down, *["mid_block"] * ("mid_block" in self), *up]

    def embed_time(
        self,
        t: mx.array,
        pooled: mx.array | None,
        time_ids: mx.array | None,
        guidance: mx.array | None,
        dtype: mx.Dtype,
    ) -> mx.array:
        """The time's embedding before its activation, (B or 1, T), with what else a call has besides the texts."""
        config = self.config
        waves = sinusoidal_embedding(t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        guidance = None if guidance is None else guidance.astype(dtype)
        time = self.time_embedding(waves.astype(dtype), guidance)
        if config.addition_embed_type == "text_time":
            assert config.addition_time_embed_dim and time_ids is not None and pooled is not None
            size = config.addition_time_embed_dim
            waves = sinusoidal_embedding(time_ids.reshape(-1), size, config.flip_sin_to_cos, config.freq_shift)
            waves = waves.reshape(time_ids.shape[0], -1).astype(dtype)
            time = time + self.add_embedding(mx.concatenate([pooled.astype(dtype), waves], axis=-1))
        return time


def _watched(
    context: list[LevelContext], names: list[str], tap: Tap | None, attend: Attend | None, rows: list[int]
) -> list[LevelContext]:
    """A context with a tap in each block, called with the layer's name and these rows; and with what attends there."""

    def watched(path: str, block: BlockContext) -> BlockContext:
        more: BlockContext = {} if tap is None else {"tap": partial(tap, f"{path}.attn2"), "rows": rows}
        if attend is not None:
            layers = {name: partial(attend, f"{path}.{name}") for name in ("attn1", "attn2")}
            more["attend"] = {name: partial(_with_rows, layer, rows) for name, layer in layers.items()}
        return block | more

    return [
        [
            [watched(f"{name}.attentions.{i}.transformer_blocks.{j}", block) for j, block in enumerate(blocks)]
            for i, blocks in enumerate(level)
        ]
        for name, level in zip(names, context, strict=True)
    ]


def _with_rows(attend: Any, rows: list[int], q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return attend(q, k, v, rows)


class _LevelBuilder:
    """Builds levels from keys that may hold one value, one per level, or one per layer."""

    def __init__(self, config: UNetConfig, time_channels: int):
        self.config = config
        self.time_channels = time_channels
        self.depths = config.per_block("transformer_layers_per_block")
        self.up_depths = config.reverse_transformer_layers_per_block or self.depths[::-1]

    def down(self, i: int) -> UNetLevel:
        config, channels = self.config, self.config.block_out_channels
        layers = config.per_block("layers_per_block")[i]
        inputs = [channels[max(i - 1, 0)]] + [channels[i]] * (layers - 1)
        attentions = self._attentions(config.down_block_types[i], i, layers, self.depths[i])
        downsample = Downsample(channels[i], config.downsample_padding) if i < len(channels) - 1 else None
        return UNetLevel([self._resnet(c, channels[i]) for c in inputs], attentions, downsample=downsample)

    def middle(self) -> UNetLevel:
        config, channels = self.config, self.config.block_out_channels[-1]
        scale = config.mid_block_scale_factor
        if config.mid_block_type == ONE_RESNET:
            return UNetLevel([self._resnet(channels, channels, scale)], [])
        resnets = [self._resnet(channels, channels, scale) for _ in range(2)]
        return UNetLevel(resnets, [self._transformer(-1, _layer_depth(self.depths[-1], 0), only_cross=False)])

    def up(self, i: int) -> UNetLevel:
        """Level i of the way up, which mirrors level n - 1 - i of the way down."""
        config, channels = self.config, self.config.block_out_channels
        n = len(channels)
        mirrored = n - 1 - i
        layers = config.per_block("layers_per_block")[mirrored] + 1
        outputs = channels[mirrored]
        before = channels[min(mirrored + 1, n - 1)]
        skips = [outputs] * (layers - 1) + [channels[max(mirrored - 1, 0)]]
        inputs = [before] + [outputs] * (layers - 1)
        resnets = [self._resnet(c + skip, outputs) for c, skip in zip(inputs, skips, strict=True)]
        attentions = self._attentions(config.up_block_types[i], mirrored, layers, self.up_depths[i])
        return UNetLevel(resnets, attentions, upsample=Upsample(outputs) if i < n - 1 else None)

    def _attentions(self, block_type: str, i: int, layers: int, depth: int | tuple) -> list[Transformer2D]:
        if not block_type.startswith("CrossAttn"):
            return []
        only_cross = self.config.per_block("only_cross_attention")[i]
        return [self._transformer(i, _layer_depth(depth, layer), only_cross) for layer in range(layers)]

    def _transformer(self, i: int, depth: int, only_cross: bool) -> Transformer2D:
        config = self.config
        context = config.per_block("cross_attention_dim")[i]
        return Transformer2D(config.block_out_channels[i], config.heads[i], depth, context, only_cross, config)

    def _resnet(self, inputs: int, outputs: int, scale: float = 1.0) -> ResnetBlock:
        config = self.config
        return ResnetBlock(
            inputs, outputs, config.norm_num_groups, config.norm_eps, config.act_fn, self.time_channels, scale
        )


def _layer_depth(depth: int | tuple, layer: int) -> int:
    return depth if isinstance(depth, int) else depth[layer]
