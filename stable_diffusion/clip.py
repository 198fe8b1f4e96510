"""CLIP's text encoder (Radford et al. 2021): token ids -> hidden states and a pooled vector.

The reference is transformers' CLIPTextModel and CLIPTextModelWithProjection (modeling_clip.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from . import ops
from .backend import mx, nn
from .config import CLIPTextConfig


@dataclass(frozen=True)
class CLIPOutput:
    """The encoder's outputs for ids (B, N)."""

    hidden_states: tuple[mx.array, ...]  # (B, N, D): the embeddings, then each layer's output, none of them normalised
    last_hidden_state: mx.array  # (B, N, D): the last layer's output after the final norm
    pooled: mx.array  # (B, D), or (B, P) with a projection: at the end-of-text position


class CLIPAttention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)
        self.heads = heads

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, channels = x.shape
        q, k, v = (
            proj(x).reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = ops.attention(q, k, v, mask="causal")
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(batch, length, channels))


class CLIPLayer(nn.Module):
    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ops.ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.fc2(self.act(self.fc1(self.layer_norm2(x))))


class CLIPTextModel(nn.Module):
    """The encoder, with a `text_projection` if the configuration's architecture has one."""

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = [CLIPLayer(config) for _ in range(config.num_hidden_layers)]
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.with_projection:
            assert config.projection_dim  # held by CLIPTextConfig.check
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.config = config

    def __call__(self, ids: mx.array) -> CLIPOutput:
        """Encode ids (B, N), int32, N at most `max_position_embeddings`."""
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1]))
        last = self.final_layer_norm(hidden_states[-1])
        pooled = last[mx.arange(ids.shape[0]), self._end_of_text(ids)]
        if "text_projection" in self:
            pooled = self.text_projection(pooled)
        return CLIPOutput(tuple(hidden_states), last, pooled)

    def _end_of_text(self, ids: mx.array) -> mx.array:
        """The position (B,) of each text's end.

        Older files have `eos_token_id` 2 (a bug that transformers fixed later) and mean the highest id, which is the
        end of text in CLIP's vocabulary.
        """
        if self.config.eos_token_id == 2:
            return mx.argmax(mx.where(ids < self.config.vocab_size, ids, 0), axis=1)  # ids beyond are embeddings
        return mx.argmax((ids == self.config.eos_token_id).astype(mx.int32), axis=1)
