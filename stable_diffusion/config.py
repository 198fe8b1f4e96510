"""A checkpoint's configuration files as frozen dataclasses that carry the files' own key names.

Every key of a file is of one of three kinds: a field (honoured), a key supported with the listed values only
(`FIXED`), or one that cannot change the result (`IGNORED`, and names with a leading underscore). Anything else is
refused by name, since silently ignoring a key would silently change the picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from .errors import ConfigError, UnsupportedCheckpointError

C = TypeVar("C", bound="Config")

ACTIVATIONS = ("silu", "swish", "gelu", "mish", "relu")
ONE_RESNET, NO_MIDDLE = "UNetMidBlock2D", None
MIDDLES = ("UNetMidBlock2DCrossAttn", ONE_RESNET, NO_MIDDLE)
EDM = "EDM"  # how the reference's scheduler classes for such models begin (Karras et al. 2022)
UNET_PREDICTIONS = ("epsilon", "v_prediction", "sample")
PREDICTION_TYPES = (*UNET_PREDICTIONS, "flow")  # what a denoising network may predict


@dataclass(frozen=True)
class Config:
    """Base class of all configurations; the module's docstring explains the three kinds of key."""

    FIXED: ClassVar[Mapping[str, tuple]] = {}
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any], source: str = "config.json") -> C:
        """Build the configuration from a parsed JSON object; `source` names the file in errors.

        Raises `UnsupportedCheckpointError` for a key or value that this engine does not build, and `ConfigError` for
        a value of the wrong type or range.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source} should hold a JSON object, not {type(values).__name__}.")
        fields = {f.name for f in dataclasses.fields(cls)}
        known = {}
        for key, value in values.items():
            if key in fields:
                known[key] = _as_tuple(value)
            elif key in cls.FIXED:
                if value not in cls.FIXED[key]:
                    accepted = " or ".join(repr(v) for v in cls.FIXED[key])
                    raise UnsupportedCheckpointError(f"{source}: {key} = {value!r} is not supported, only {accepted}.")
            elif not (key.startswith("_") or key in cls.IGNORED or value is None or value is False):
                raise UnsupportedCheckpointError(
                    f"{source}: the key {key} = {value!r} is unknown and might change the result."
                )
        try:
            config = cls(**known)
            config.check()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{source}: {error}") from None
        return config

    def check(self) -> None:
        """Raise ValueError for values that make no sense together."""

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, bool) or not isinstance(item, int) or item < 1:
                    raise ValueError(f"{name} = {value!r} should consist of integers of at least 1.")

    def _check_choice(self, name: str, choices: tuple) -> None:
        value = getattr(self, name)
        for item in value if isinstance(value, tuple) else (value,):
            if item not in choices:
                raise ValueError(f"{name} = {item!r} should be one of {', '.join(map(repr, choices))}.")


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class CLIPTextConfig(Config):
    """text_encoder/config.json of transformers' CLIPTextModel and CLIPTextModelWithProjection."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int | None = 49407
    architectures: tuple[str, ...] | None = ("CLIPTextModel",)

    FIXED: ClassVar = {"model_type": ("clip_text_model", "clip"), "is_encoder_decoder": (False,)}
    IGNORED: ClassVar = frozenset(
        # Training, serialisation and generation settings that every transformers configuration may carry.
        """attention_dropout dropout initializer_factor initializer_range bos_token_id pad_token_id torch_dtype dtype
        transformers_version add_cross_attention bad_words_ids begin_suppress_tokens chunk_size_feed_forward
        cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample early_stopping
        encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
        forced_eos_token_id id2label is_decoder label2id length_penalty max_length min_length no_repeat_ngram_size
        num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_scores prefix
        problem_type pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
        sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
        tie_word_embeddings tokenizer_class top_k top_p torchscript typical_p use_bfloat16 use_return_dict
        use_cache""".split()
    )

    @property
    def with_projection(self) -> bool:
        """True if the file names CLIPTextModelWithProjection, the encoder with a `text_projection` layer."""
        return "CLIPTextModelWithProjection" in (self.architectures or ())

    def check(self) -> None:
        self._check_positive(
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "max_position_embeddings",
        )  # fmt: skip
        self._check_choice("hidden_act", ("quick_gelu", *ACTIVATIONS))
        if self.with_projection:
            self._check_positive("projection_dim")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} should be a multiple of "
                f"num_attention_heads = {self.num_attention_heads}."
            )


@dataclass(frozen=True)
class UNetConfig(Config):
    """unet/config.json of diffusers' UNet2DConditionModel."""

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple = 1
    reverse_transformer_layers_per_block: tuple | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    upcast_attention: bool = False
    time_embedding_dim: int | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3

    FIXED: ClassVar = {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "class_embeddings_concat": (False,),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "resnet_time_scale_shift": ("default",),
        "resnet_skip_time_act": (False,),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "attention_type": ("default",),
        "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,),
    }
    IGNORED: ClassVar = frozenset(
        # The reference uses resnet_out_scale_factor in other block types only; the second line is diffusers' EMAModel's
        # record of how weights were averaged in training.
        """dropout addition_embed_type_num_heads resnet_out_scale_factor
        decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup""".split()
    )

    def check(self) -> None:
        self._check_positive(
            "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
            "cross_attention_dim", "attention_head_dim", "conv_in_kernel", "conv_out_kernel",
        )  # fmt: skip
        self._check_choice("down_block_types", ("CrossAttnDownBlock2D", "DownBlock2D"))
        self._check_choice("up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D"))
        self._check_choice("mid_block_type", MIDDLES)
        self._check_choice("act_fn", ACTIVATIONS)
        self._check_choice("addition_embed_type", (None, "text_time"))
        blocks = len(self.down_block_types)
        for name in ("up_block_types", "block_out_channels", "layers_per_block", "cross_attention_dim",
                     "attention_head_dim", "num_attention_heads", "only_cross_attention",
                     "transformer_layers_per_block"):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != blocks:
                raise ValueError(f"{name} = {value!r} should have {blocks} entries, as down_block_types.")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels = {self.block_out_channels!r} should be multiples of "
                    f"norm_num_groups = {self.norm_num_groups}."
                )
        if self.addition_embed_type == "text_time" and not (
            self.addition_time_embed_dim and self.projection_class_embeddings_input_dim
        ):
            raise ValueError(
                "addition_embed_type = 'text_time' needs addition_time_embed_dim and "
                "projection_class_embeddings_input_dim."
            )

    def per_block(self, name: str) -> tuple:
        """The value of a key for each down block, whether the file has one value or one per block."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.down_block_types)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each down block.

        `attention_head_dim` holds the *number* of heads in SD's files, a historical misnomer of the reference;
        `num_attention_heads` takes precedence if given (diffusers unet_2d_condition.py).
        """
        return self.per_block("num_attention_heads" if self.num_attention_heads else "attention_head_dim")


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """vae/config.json of diffusers' AutoencoderKL."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def check(self) -> None:
        self._check_positive(
            "in_channels",
            "out_channels",
            "block_out_channels",
            "layers_per_block",
            "latent_channels",
            "norm_num_groups",
        )
        self._check_choice("down_block_types", ("DownEncoderBlock2D",))
        self._check_choice("up_block_types", ("UpDecoderBlock2D",))
        self._check_choice("act_fn", ACTIVATIONS)
        if not len(self.down_block_types) == len(self.up_block_types) == len(self.block_out_channels):
            raise ValueError("down_block_types, up_block_types and block_out_channels should have the same length.")
        if not self.scaling_factor:
            raise ValueError(f"scaling_factor = {self.scaling_factor!r} should not be zero.")
        for name in ("latents_mean", "latents_std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.latent_channels:
                raise ValueError(f"{name} = {value!r} should have latent_channels = {self.latent_channels} entries.")

    @property
    def downscale(self) -> int:
        """Pixels of picture to one latent, along each side: 8 for Stable Diffusion."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class AutoencoderTinyConfig(Config):
    """vae/config.json of diffusers' AutoencoderTiny."""

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0

    FIXED: ClassVar = {"upsample_fn": ("nearest",), "shift_factor": (0.0, None)}
    # A copy of the decoder's channels, precision, and the reference's conversion of latents to bytes.
    IGNORED: ClassVar = frozenset({"block_out_channels", "force_upcast", "latent_magnitude", "latent_shift"})

    def check(self) -> None:
        self._check_positive(
            "in_channels", "out_channels", "encoder_block_out_channels", "decoder_block_out_channels",
            "latent_channels", "upsampling_scaling_factor", "num_encoder_blocks", "num_decoder_blocks",
        )  # fmt: skip
        self._check_choice("act_fn", ACTIVATIONS)
        for way in ("encoder", "decoder"):
            channels, blocks = getattr(self, f"{way}_block_out_channels"), getattr(self, f"num_{way}_blocks")
            if len(channels) != len(blocks) or len(set(channels)) != 1:
                raise ValueError(
                    f"{way}_block_out_channels = {channels!r} should be equal numbers, as many as "
                    f"num_{way}_blocks = {blocks!r}."
                )
        if not self.scaling_factor:
            raise ValueError(f"scaling_factor = {self.scaling_factor!r} should not be zero.")

    @property
    def downscale(self) -> int:
        """Pixels of picture to one latent, along each side."""
        return self.upsampling_scaling_factor ** (len(self.decoder_block_out_channels) - 1)

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """Channels from the picture inwards, as in the large autoencoder's configuration."""
        return self.decoder_block_out_channels[::-1]


def edm_kind(scheduler: Any) -> str:
    """What a checkpoint with a scheduler of this class is, in words, if it is an EDM model; else ""."""
    is_edm = isinstance(scheduler, str) and scheduler.startswith(EDM)
    return f"an EDM model ({scheduler}), such as Playground 2.5 or CosXL" if is_edm else ""


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """scheduler/scheduler_config.json of any of diffusers' schedulers.

    FlowMatchEulerDiscreteScheduler's has `prediction_type` "flow", for networks trained by flow matching, and may have
    a `shift`.

    None means that the file lacks the key. The chosen sampler then decides, because the reference's scheduler classes
    differ in their defaults.
    """

    num_train_timesteps: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    beta_schedule: str | None = None
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int | None = None
    rescale_betas_zero_snr: bool = False
    interpolation_type: str = "linear"
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str | None = None
    timestep_type: str = "discrete"
    set_alpha_to_one: bool | None = None
    variance_type: str | None = None
    skip_prk_steps: bool | None = None
    solver_order: int | None = None
    solver_type: str | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None
    original_inference_steps: int | None = None
    timestep_scaling: float | None = None
    shift: float = 1.0
    aligned_sigmas: tuple[float, ...] | None = None  # the family's, for Align Your Steps; no key of the files

    FIXED: ClassVar = {
        "thresholding": (False,),
        "shift_terminal": (None,),
        "invert_sigmas": (False,),
        "stochastic_sampling": (False,),
        "use_flow_sigmas": (False, None),
        "use_lu_lambdas": (False, None),
        "use_dynamic_shifting": (False, None),
        "predict_x0": (True,),
        "disable_corrector": ([],),
        "solver_p": (None,),
        "lambda_min_clipped": (float("-inf"), "-Infinity"),
    }
    IGNORED: ClassVar = frozenset(
        # No effect without thresholding, clipping or flow matching; latents are never clipped, as in the reference's
        # StableDiffusionPipeline, whose constructor turns clip_sample off. The sampler's name, not the file
        # (algorithm_type), selects the DPM-Solver algorithm.
        """algorithm_type clip_sample clip_sample_range dynamic_thresholding_ratio sample_max_value flow_shift
        time_shift_type base_shift max_shift base_image_seq_len max_image_seq_len noise_sampler_seed
        use_clipped_model_output""".split()
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> SchedulerConfig:
        """As for other configurations; the scheduler's class name marks flow matching."""
        if isinstance(values, Mapping) and (kind := edm_kind(values.get("_class_name"))):
            raise UnsupportedCheckpointError(f"{source}: the checkpoint is {kind}, which is not supported.")
        if isinstance(values, Mapping) and values.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
            values = {"timestep_spacing": "linspace", **values, "prediction_type": "flow"}
        return super().from_dict(values, source)

    def check(self) -> None:
        self._check_positive("num_train_timesteps")
        self._check_choice("prediction_type", PREDICTION_TYPES)
        self._check_choice("beta_schedule", (None, "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
        self._check_choice("timestep_spacing", (None, "leading", "linspace", "trailing"))
        self._check_choice("interpolation_type", ("linear", "log_linear"))
        self._check_choice("final_sigmas_type", (None, "zero", "sigma_min"))
        self._check_choice("timestep_type", ("discrete", "continuous"))
        if isinstance(self.shift, bool) or not isinstance(self.shift, (int, float)) or not 0 < self.shift < math.inf:
            raise ValueError(f"shift = {self.shift!r} should be a positive number.")
        if self.prediction_type != "flow" and self.shift != 1:
            raise ValueError(f"shift = {self.shift!r} belongs to flow matching, not to {self.prediction_type!r}.")
        if self.prediction_type == "flow":
            if self.num_train_timesteps != 1000:
                raise ValueError(
                    f"num_train_timesteps = {self.num_train_timesteps!r} should be 1000 with flow matching."
                )
            for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
                if getattr(self, key):  # over s, where a sampler's are over sigma / alpha
                    raise ValueError(f"{key} is not supported with flow matching; a sampler's own sigmas are.")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas has {len(self.trained_betas)} entries; "
                f"num_train_timesteps = {self.num_train_timesteps} are expected."
            )
