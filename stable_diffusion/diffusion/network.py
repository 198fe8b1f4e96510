"""The parts of a model as protocols: a denoising network, a text reader and an autoencoder.

Stable Diffusion's U-Net, CLIP text encoders and AutoencoderKL implement them, and a transformer with other text
encoders could: painting, previews, samplers and memory estimates use nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

from ..backend import mx
from ..errors import InputError
from ..text.prompt import Text

# A tree for mlx.utils.tree_map: lists, tuples, dicts. Each array has one row per text, or per row of the batch; other
# values apply to all rows.
Context = Any
# Called with a layer's name, its queries (B, heads, H, W, D), its keys (B or 1, heads, M, D), and the places of these B
# rows in the call's batch: lanes may compute parts of a batch, at the same time.
Tap = Callable[[str, mx.array, mx.array, list[int]], None]

# Attends in a layer's stead: called with the layer's name, queries, keys and values (B or 1, heads, M, D), and the same
# places; returns (B, heads, N, D). Here queries are (B, heads, N, D).
Attend = Callable[[str, mx.array, mx.array, mx.array, list[int]], mx.array]


@dataclass(frozen=True)
class Conditioning:
    """One text as a network sees it: hidden states, and a pooled vector if the network takes one."""

    text: mx.array  # (1, N, D); 77 a chunk of CLIP's
    pooled: mx.array | None = None  # (1, P)
    negative: bool = False  # it says what to keep out


@dataclass
class DeepFeatures:
    """The feature map that arrives at a skip connection on the way up, (B, h, w, C); `branch` counts from the input.

    A call that is given None computes everything and puts its own here. A call that is given one computes only the
    skip connections up to `branch` and the way up from there (DeepCache, Ma et al. 2023).
    """

    branch: int
    features: mx.array | None = None

    def row(self, i: int) -> DeepFeatures:
        """Those of one row."""
        return DeepFeatures(self.branch, None if self.features is None else self.features[i : i + 1])


@dataclass(frozen=True)
class Extras:
    """Further inputs of one call. Each is optional, and costs nothing when None.

    `residuals` are added to the skip connections, in order of the way down, and the last one to the middle block's
    output (ControlNet, Zhang et al. 2023). `keys_values` are further keys and values for cross-attention, by layer name
    (IP-Adapter, Ye et al. 2023). `tap` is called by each cross-attention layer; `attend` by each layer, self-attention
    included, in place of its own attention. `deep` goes from one call to others.
    """

    residuals: Sequence[mx.array] | None = None
    keys_values: dict[str, tuple[mx.array, mx.array]] | None = None
    tap: Tap | None = None
    attend: Attend | None = None
    deep: DeepFeatures | None = None

    def refuse_all_but(self, network: str, *known: str) -> None:
        """Raise `InputError` for an extra that a network does not take."""
        for field in fields(self):
            if getattr(self, field.name) is not None and field.name not in known:
                others = f", only {', '.join(known[:-1])} and {known[-1]}" if known else " or other extras"
                raise InputError(f"{network} takes no {field.name}{others}.")


class Watcher(Protocol):
    """Looks at, or into, the network's calls of one generation."""

    def extras(self, step: int, n_rows: int, first: int = 0) -> Extras:
        """The extras of a call at a step, from 1, which has the rows from `first` on of the step's `n_rows`."""


class DenoisingNetwork(Protocol):
    """Latents, a time and texts -> eps, v, x_0 or u, by the checkpoint's prediction type. Also an `nn.Module`.

    Latents are (B, h, w, in_channels), of unit variance or, for flow matching, x_s. An inpainting network gets a mask
    and the masked picture's latents as further channels.
    """

    @property
    def in_channels(self) -> int:
        """Channels of its input."""

    @property
    def patch(self) -> int:
        """Side of a patch in latents; h and w are multiples of it."""

    @property
    def sample_size(self) -> tuple[int, int]:
        """(h, w) in latents, the training size."""

    @property
    def embeds_guidance(self) -> bool:
        """True if the guidance weight is an input, so that no negative text is needed (LCM)."""

    @property
    def branches(self) -> int:
        """Skip connections at which its deep features can be kept, 0 if it has none."""

    @property
    def values_per_latent(self) -> int:
        """Values in memory at the peak of a call, per latent and row."""

    def largest_product(self, rows: int, latents: int) -> int:
        """Approximate multiply-adds of a call's largest matrix product, with `latents` per row."""

    def prepare(
        self, texts: Sequence[Conditioning], width: int, height: int, dtype: mx.Dtype, cfg_weight: float
    ) -> Context:
        """The context of texts, all of one length, at a size in pixels; computed once per generation.

        `cfg_weight` matters only if the network embeds it.
        """

    def predict(self, x: mx.array, t: mx.array, context: Context, extras: Extras | None = None) -> mx.array:
        """Predict for latents x (B, h, w, in_channels) and a time t (1,); the context has B rows.

        Raises `InputError` for unsupported extras.
        """

    def parameters(self) -> Any:
        """The weights."""


Reader = TypeVar("Reader", bound="TextReader")


class TextReader(Protocol):
    """Turns texts into conditionings."""

    @property
    def encoders(self) -> Sequence[Any]:
        """Its networks."""

    @property
    def tokenizers(self) -> Sequence[Any]:
        """CLIP tokenizers, one per encoder; without any, embeddings are not supported."""

    def replaced(self: Reader, **changes: Any) -> Reader:
        """A copy with another `clip_skip`, other `encoders` (for LoRAs) or `tokenizers` (for embeddings).

        Raises `InputError` for a `clip_skip` beyond the layers.
        """

    def read(self, texts: Sequence[Text | None]) -> list[Conditioning]:
        """Encode the texts of one generation, padded to one length; None is "no negative text", and never alone."""

    def n_chunks(self, texts: Sequence[Text | None]) -> int:
        """The length that `read` pads all texts to, in units of its own."""


class LatentSpace(Protocol):
    """The part of an autoencoder's configuration that others use."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    def downscale(self) -> int:
        """Pixels per latent, along each side."""

    @property
    def block_out_channels(self) -> Sequence[int]:
        """Channels of its feature maps, from the picture inwards; memory is estimated from them."""


class PictureAutoencoder(Protocol):
    """Pictures (B, H, W, 3) in [-1, 1] <-> latents (B, h, w, latent_channels), of about unit variance."""

    @property
    def config(self) -> LatentSpace:
        """Its shapes."""

    def encode(self, picture: mx.array, noise: mx.array) -> mx.array:
        """Latents of a picture, sampled with unit `noise` of their shape if there is a posterior."""

    def decode(self, latents: mx.array) -> mx.array:
        """Pictures of latents, in [-1, 1] apart from overshoots."""

    def parameters(self) -> Any:
        """The weights."""
