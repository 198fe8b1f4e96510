"""ComfyUI: a graph of nodes as JSON in the text `prompt`, read backwards from the sampler that paints the first pass.

A node is {"class_type": name, "inputs": {name: value or [id of another node, number of its output]}}. Nodes are told by
the names of their inputs, so that those of extensions are understood too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..parameters import Parameters
from . import values

MAX_NODES = 2000
_LATENTS = ("latent_image", "samples", "latent")
_TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "positive_prompt", "string", "value")
_MODELS = ("ckpt_name", "unet_name", "model_name", "ckpt", "base_ckpt_name")
_NOT_WORDS = ("model", "clip", "vae", "image", "control_net", "clip_vision_output", "clip_vision", "style_model")


def read(texts: Mapping[str, str]) -> Parameters | None:
    """The parameters in it; None also for a graph without a sampler."""
    graph = values.from_json(texts.get("prompt"))
    if (
        not graph
        or len(graph) > MAX_NODES
        or not all(isinstance(node, dict) and "class_type" in node for node in graph.values())
    ):
        return None
    return _Graph(graph).parameters()


class _Graph:
    """The nodes by id, and walks against the direction of their links."""

    def __init__(self, nodes: Mapping[str, Any]):
        self.nodes = {str(name): node for name, node in nodes.items()}

    def parameters(self) -> Parameters | None:
        sampler = self.first_sampler()
        if sampler is None:
            return None
        guider = self.target(sampler, "guider") or sampler
        name, schedule = values.sampler_names(
            self.value(sampler, ("sampler_name",), "sampler"), self.value(sampler, ("scheduler",), "sigmas")
        )
        strength = values.number(self.value(sampler, ("denoise",), "sigmas"))
        latent = next((self.inputs(sampler)[key] for key in _LATENTS if key in self.inputs(sampler)), None)
        size = next((each for each in map(self.inputs, self.walk(latent)) if {"width", "height"} <= each.keys()), {})
        return Parameters(
            prompt=self.words(guider, ("positive", "conditioning")),
            negative=self.words(guider, ("negative",)),
            steps=values.integer(self.value(sampler, ("steps",), "sigmas")),
            sampler=name,
            schedule=schedule,
            cfg=values.number(self.value(sampler, ("cfg",), "guider")),
            seed=values.integer(self.value(sampler, ("seed", "noise_seed"), "noise")),
            width=values.integer(self.plain(size.get("width"))),
            height=values.integer(self.plain(size.get("height"))),
            model=self.model(guider),
            strength=strength if strength is not None and strength < 1 else None,
            extra=values.loras(self.loras(guider)),
        )

    def first_sampler(self) -> str | None:
        """The sampler whose latents come from no other one, among those that a saved picture comes from."""
        ends = sorted(self.nodes, key=lambda name: "Save" not in self.nodes[name]["class_type"])
        found = next((name for end in ends for name in self.walk([end, 0]) if self.is_sampler(name)), None)
        seen = set()
        while found is not None and found not in seen:
            seen.add(found)
            latents = (self.inputs(found).get(key) for key in _LATENTS)
            earlier = (name for link in latents for name in self.walk(link) if self.is_sampler(name))
            found = next(earlier, found)
        return found

    def is_sampler(self, name: str) -> bool:
        inputs = self.inputs(name)
        guided = "guider" in inputs or {"positive", "negative"} <= inputs.keys()
        steps = {"steps", "sigmas"} & inputs.keys()
        return bool(guided and steps and any(key in inputs for key in _LATENTS))

    def inputs(self, name: str) -> dict[str, Any]:
        inputs = self.nodes[name].get("inputs")
        return inputs if isinstance(inputs, dict) else {}

    def linked(self, value: Any) -> str | None:
        """The node that a link leads to; None for a value."""
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in self.nodes:
            return str(value[0])
        return None

    def target(self, name: str, key: str) -> str | None:
        return self.linked(self.inputs(name).get(key))

    def walk(self, link: Any) -> Iterator[str]:
        """The node that a link leads to, and all before it, the nearest first."""
        waiting, seen = [self.linked(link)], set()
        while waiting:
            name = waiting.pop(0)
            if name is not None and name not in seen:
                seen.add(name)
                yield name
                waiting += map(self.linked, self.inputs(name).values())

    def value(self, name: str, wanted: tuple[str, ...], beyond: str) -> Any:
        """The first input of a name in `wanted`: of the node itself, else of those before its input `beyond`."""
        for each in (name, *self.walk(self.inputs(name).get(beyond))):
            for key in wanted:
                if key in self.inputs(each):
                    return self.plain(self.inputs(each)[key])
        return None

    def plain(self, value: Any) -> Any:
        """A value, also one that another node does nothing but hold."""
        for name in self.walk(value):
            held = [each for each in self.inputs(name).values() if isinstance(each, (int, float, str))]
            if held:
                return held[0]
        return value if self.linked(value) is None else None

    def words(self, name: str, wanted: tuple[str, ...]) -> str:
        """The texts that an input's conditioning comes from, each once, one per line."""
        found: list[str] = []
        seen: set[tuple[str, Any]] = set()
        waiting: list[Any] = [self.inputs(name)[key] for key in wanted if key in self.inputs(name)][:1]
        while waiting:
            link = waiting.pop(0)
            name = self.linked(link) or ""
            if not name or (name, link[1]) in seen or "ZeroOut" in self.nodes[name]["class_type"]:
                continue
            seen.add((name, link[1]))
            inputs = self.inputs(name)
            texts = [text for key in _TEXTS if key in inputs and (text := values.words(self.text(inputs[key])))]
            if texts:
                found += texts
            elif {"positive", "negative"} <= inputs.keys():  # both pass through, the positive one first
                waiting.append(inputs["negative" if link[1] == 1 else "positive"])
            else:
                waiting += [each for key, each in inputs.items() if key not in _NOT_WORDS]
        return "\n".join(dict.fromkeys(found))

    def text(self, value: Any) -> Any:
        """A text, also one that comes from other nodes: the first that is found there."""
        if self.linked(value) is None:
            return value
        for name in self.walk(value):
            texts = [each for each in self.inputs(name).values() if isinstance(each, str) and each.strip()]
            if texts:
                return max(texts, key=len)
        return None

    def model(self, name: str) -> str | None:
        for each in self.walk(self.inputs(name).get("model")):
            for key in _MODELS:
                if isinstance(found := self.inputs(each).get(key), str):
                    return values.model_name(found)
        return None

    def loras(self, name: str) -> list[tuple[Any, Any]]:
        """(file, strength) of the LoRAs over the model, the first one first."""
        chain = [self.inputs(each) for each in self.walk(self.inputs(name).get("model"))]
        found = [
            (each["lora_name"], self.plain(each.get("strength_model", 1))) for each in chain if "lora_name" in each
        ]
        return found[::-1]
