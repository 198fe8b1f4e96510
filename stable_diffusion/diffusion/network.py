"""What a model is made of, as protocols: a denoising network, what reads its texts, and its autoencoder.

The U-Net, the CLIP text encoders and AutoencoderKL of Stable Diffusion fit them. So may a transformer with other text
encoders: whatever paints, previews, samples or plans memory asks for no more than what is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

from ..backend import mx
from ..errors import InputError
from ..text.prompt import Text

# A tree of lists, tuples and dicts, as mlx.utils.tree_map takes it. Each array in it has one row for each text, or for
# each row of the batch; what is not an array is the same for all.
Context = Any
# Given a layer's name, its queries and its keys, (B, heads, N, D) and (B, heads, M, D).
Tap = Callable[[str, mx.array, mx.array], None]


@dataclass(frozen=True)
class Conditioning:
    """One text as a network sees it: hidden states, and where the network takes one a pooled vector."""

    text: mx.array  # (1, N, D); 77 a chunk of CLIP's
    pooled: mx.array | None = None  # (1, P)


@dataclass(frozen=True)
class Extras:
    """What else a network may be given in one call. Each is optional, and costs nothing where it is None.

    `residuals` are added to what the way down keeps for the way up, in that order, the last to the middle's output
    (ControlNet, Zhang et al. 2023). `keys_values` are further keys and values for the attention to the text, by the
    layer's name (IP-Adapter, Ye et al. 2023). `tap` is called by each layer that attends to the text.
    """

    residuals: Sequence[mx.array] | None = None
    keys_values: dict[str, tuple[mx.array, mx.array]] | None = None
    tap: Tap | None = None

    def refuse_all_but(self, network: str, *known: str) -> None:
        """Raise `InputError` for one that a network does not take."""
        for field in fields(self):
            if getattr(self, field.name) is not None and field.name not in known:
                others = f", only {' and '.join(known)}" if known else " or other extras"
                raise InputError(f"{network} takes no {field.name}{others}.")


class DenoisingNetwork(Protocol):
    """Latents, a time and texts -> what the checkpoint's prediction type says. An `nn.Module`, too.

    Latents are (B, h, w, in_channels), of unit variance or, for flow matching, x_s; an inpainting network sees a mask
    and the masked picture's latents as further channels.
    """

    @property
    def in_channels(self) -> int:
        """Channels of what it is given."""

    @property
    def patch(self) -> int:
        """Latents that one place of the network covers along each side: h and w are multiples of it."""

    @property
    def sample_size(self) -> tuple[int, int]:
        """(h, w) in latents, the size that it was trained for."""

    @property
    def embeds_guidance(self) -> bool:
        """True where it takes the guidance weight as an input of its own, and is called without a negative text."""

    @property
    def values_per_latent(self) -> int:
        """Values held at the peak of a call, for each latent of each row."""

    def largest_product(self, rows: int, latents: int) -> int:
        """About how many multiply-adds the largest matrix product of a call takes, with `latents` in each row."""

    def prepare(
        self, texts: Sequence[Conditioning], width: int, height: int, dtype: mx.Dtype, cfg_weight: float
    ) -> Context:
        """What texts, all of one length, mean to the network at a size in pixels; computed once for a generation.

        `cfg_weight` counts where the network embeds it.
        """

    def predict(self, x: mx.array, t: mx.array, context: Context, extras: Extras | None = None) -> mx.array:
        """Predict for latents x (B, h, w, in_channels) and a time t (1,); the context has B rows.

        Raises `InputError` for extras that it does not take.
        """

    def parameters(self) -> Any:
        """The weights."""


Reader = TypeVar("Reader", bound="TextReader")


class TextReader(Protocol):
    """What reads a checkpoint's texts."""

    @property
    def encoders(self) -> Sequence[Any]:
        """Its networks."""

    @property
    def tokenizers(self) -> Sequence[Any]:
        """CLIP's tokenizers, one for each encoder, or none where it does without: then no embedding can be named."""

    def replaced(self: Reader, **changes: Any) -> Reader:
        """The same with another `clip_skip`, where LoRAs fit with other `encoders`, with embeddings `tokenizers`.

        Raises `InputError` for a `clip_skip` that there is no layer for.
        """

    def read(self, texts: Sequence[Text | None]) -> list[Conditioning]:
        """Encode the texts of one generation, all to one length; None is "no negative text", and never alone."""

    def n_chunks(self, texts: Sequence[Text | None]) -> int:
        """The length that `read` brings all texts to, in whatever unit."""


class LatentSpace(Protocol):
    """The part of an autoencoder's configuration that others look at."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    def downscale(self) -> int:
        """Pixels to one latent along each side."""

    @property
    def block_out_channels(self) -> Sequence[int]:
        """Channels of its feature maps, from the picture inwards: what its memory is estimated by."""


class PictureAutoencoder(Protocol):
    """Pictures (B, H, W, 3) in [-1, 1] <-> latents (B, h, w, latent_channels), of about unit variance."""

    @property
    def config(self) -> LatentSpace:
        """Its shapes."""

    def encode(self, picture: mx.array, noise: mx.array) -> mx.array:
        """Latents of a picture, drawn with unit `noise` of their shape where there is something to draw."""

    def decode(self, latents: mx.array) -> mx.array:
        """Pictures of latents, in [-1, 1] but for overshoots."""

    def parameters(self) -> Any:
        """The weights."""
