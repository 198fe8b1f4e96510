"""What a step costs a GPU: the operations of a U-Net call of Stable Diffusion 1.5's shape, by kind, and its bytes.

    python benchmarks/operations.py [--size 64] [--batch 2] [--plain]

The graph is built and counted, not computed, in the forms used on a GPU; weights are float16 zeros. Operations that
only make a view launch nothing, unless they have to copy. Two fused operations of `mx.fast` are counted as on a GPU:
one for each attention and one for each layer norm.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlx.utils import tree_flatten

from stable_diffusion import ops
from stable_diffusion.backend import mx
from stable_diffusion.config import UNetConfig
from stable_diffusion.unet import UNet

VIEWS = {"Broadcast", "Reshape", "Transpose", "Flatten", "Unflatten", "ExpandDims", "Squeeze", "Split", "Slice"}


def copies(graph: str) -> int:
    """How many reshapes of a graph are of transposed or repeated arrays, which they have to copy."""
    labels = dict(re.findall(r'(\d+) \[label ?= ?"([A-Za-z]+)"', graph))
    makers = {array: labels[node] for node, array in re.findall(r'(\d+) -> "(\w+)"', graph)}
    taken = re.findall(r'"(\w+)" -> (\d+)', graph)
    return sum(
        labels[node] in ("Reshape", "Flatten") and makers.get(a) in ("Transpose", "Broadcast") for a, node in taken
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side of the latents (default: 64)")
    parser.add_argument("--batch", type=int, default=2, help="rows of the call, two for guidance (default: 2)")
    parser.add_argument("--plain", action="store_true", help="with the plain forms: nothing fused by mx.compile")
    options = parser.parse_args()
    with ops.use("plain" if options.plain else "gpu"):
        count(options)


def count(options: argparse.Namespace) -> None:
    unet = UNet(UNetConfig(cross_attention_dim=768))
    unet.apply(lambda weight: mx.zeros(weight.shape, mx.float16))
    text = mx.zeros((options.batch, 77, 768), mx.float16)
    context = unet.project_text(text)
    x = mx.zeros((options.batch, options.size, options.size, 4), mx.float16)
    mx.eval(unet.parameters(), context, x)
    fused = collections.Counter()

    def attention(q: mx.array, k: mx.array, v: mx.array, mask: None = None) -> mx.array:
        fused["attention"] += 1
        return q  # of the right shape, and no further operation

    def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
        fused["layer norm"] += 1
        return x

    mx.fast.layer_norm = layer_norm
    graph = io.StringIO()
    with ops.use(dataclasses.replace(ops.forms(), attention=attention)):
        mx.export_to_dot(graph, unet(x, mx.array([500.0]), context))
    found = collections.Counter(re.findall(r'label ?= ?"([A-Za-z]+)"', graph.getvalue()))
    launches = {name: n for name, n in found.items() if name not in VIEWS} | fused
    launches["copy (a transposed array reshaped)"] = copies(graph.getvalue())
    for name, n in sorted(launches.items(), key=lambda item: -item[1]):
        print(f"{n:6} {name}")
    weights = sum(weight.nbytes for _, weight in tree_flatten(unet.parameters()))
    print(f"{sum(launches.values()):6} operations that compute, {sum(found.values()) + fused.total()} in all")
    print(f"{weights / 2**20:6.0f} MiB of weights are read")


if __name__ == "__main__":
    main()
