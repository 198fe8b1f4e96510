"""The whole system as one drawing, in the shapes of the loaded model; every box leads to its lesson."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mlx.utils import tree_flatten

from .common import EXAMPLE, LDM
from .lesson import Block, Drawing, Lesson, Options, Report, Say, Tour, Values

ROUTES = ("text to image", "image to image", "inpainting")
TEXT, PICTURE, MASK = ROUTES
WIDTH, HEIGHT, BOX = 420, 640, (126, 54)


@dataclass(frozen=True)
class Shapes:
    """What the boxes say, by name."""

    tokens: str
    states: str
    latents: str
    picture: str
    network: str
    decoder: str


@dataclass(frozen=True)
class Box:
    """A box of the map: its place (left, top), width, words, lesson, and the routes that pass it."""

    left: int
    top: int
    title: str
    detail: str
    lesson: str
    routes: tuple[str, ...] = ROUTES
    width: int = BOX[0]


def compute(model: Any, report: Report, values: Values) -> Shapes:
    """The shapes of the loaded model."""
    width, height = model.default_size
    h, w, c = height // model.downscale, width // model.downscale, model.latent_channels
    _, n, d = model.encode_text(EXAMPLE).shape
    parameters: Any = tree_flatten(model.network.parameters())
    millions = sum(value.size for _, value in parameters) / 1e6
    return Shapes(
        f"{n} numbers", f"{n} × {d}", f"{h} × {w} × {c}", f"{height} × {width} × 3", f"{millions:,.1f} M weights",
        f"× {model.downscale} each side",
    )  # fmt: skip


def boxes(shapes: Shapes) -> list[Box]:
    """All boxes, from top to bottom."""
    left, middle, right = 4, 147, 290
    return [
        Box(left, 4, "Prompt", "words", "tokens"),
        Box(middle, 4, "Picture", shapes.picture, "strength", (PICTURE, MASK)),
        Box(right, 4, "Mask", "what to repaint", "inpainting", (MASK,)),
        Box(left, 92, "Tokens", shapes.tokens, "tokens"),
        Box(middle, 92, "Encoder", "of the VAE", "latents", (PICTURE, MASK)),
        Box(left, 180, "Text encoder", shapes.states, "meaning"),
        Box(middle, 180, "Noise, xₜ", shapes.latents, "forward"),
        Box(right, 180, "Put back", "at every step", "inpainting", (MASK,)),
        Box(left, 280, "U-Net", f"says the noise; {shapes.network}", "unet", width=269),
        Box(left, 368, "Guidance", "with and without", "guidance"),
        Box(middle, 368, "Sampler", "one step down", "race"),
        Box(right, 368, "Scheduler", "which levels", "levels"),
        Box(middle, 468, "Latents, x₀", shapes.latents, "latent-walk"),
        Box(middle, 556, "Decoder", shapes.decoder, "latents"),
        Box(right, 556, "Picture", shapes.picture, "denoising"),
    ]


# Arrows as (from x, y, to x, y), and the routes that take them.
ARROWS = (
    (67, 58, 67, 92, ROUTES), (67, 146, 67, 180, ROUTES), (67, 234, 67, 280, ROUTES),
    (210, 58, 210, 92, (PICTURE, MASK)), (210, 146, 210, 180, (PICTURE, MASK)), (210, 234, 210, 280, ROUTES),
    (353, 58, 353, 180, (MASK,)), (290, 207, 273, 207, (MASK,)),
    (67, 334, 67, 368, ROUTES), (130, 395, 147, 395, ROUTES), (290, 395, 273, 395, ROUTES),
    (210, 422, 210, 468, ROUTES), (210, 522, 210, 556, ROUTES), (273, 583, 290, 583, ROUTES),
)  # fmt: skip


def svg(shapes: Shapes, route: str) -> str:
    """The drawing; what the route does not pass is faint."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="The parts of {escape(route)}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" class="tip"/></marker></defs>',
        # The loop: from the sampler back up to the noisy latents.
        '<path d="M 273 385 H 281 V 250 H 240 V 236" class="arrow loop" marker-end="url(#tip)"/>',
        '<text x="312" y="262" class="small">n steps</text>',
    ]
    for x, y, to_x, to_y, routes in ARROWS:
        faint = "" if route in routes else " faint"
        parts.append(f'<path d="M {x} {y} L {to_x} {to_y}" class="arrow{faint}" marker-end="url(#tip)"/>')
    for box in boxes(shapes):
        faint = "" if route in box.routes else " faint"
        middle = box.left + box.width / 2
        parts.append(
            f'<g class="box{faint}" data-lesson="{box.lesson}" tabindex="0" role="link" '
            f'aria-label="{escape(box.title)}, {escape(box.detail)}: to the lesson">'
            f'<rect x="{box.left}" y="{box.top}" width="{box.width}" height="{BOX[1]}" rx="8"/>'
            f'<text x="{middle}" y="{box.top + 23}" class="title">{escape(box.title)}</text>'
            f'<text x="{middle}" y="{box.top + 42}" class="small">{escape(box.detail)}</text></g>'
        )
    return "".join(parts) + "</svg>"


def show(found: Shapes, values: Values) -> Sequence[Block]:
    route = values["route"]
    words = {
        TEXT: "The prompt becomes numbers; noise becomes latents, step by step; the decoder makes the picture of them.",
        PICTURE: "The picture is encoded and noised part of the way; from there on everything is as with text alone.",
        MASK: "As image to image, and at every step what is to stay is put back.",
    }
    drawing = Drawing(svg(found, route), f"The parts of the system for {route}, from top to bottom")
    return [Say(words[route]), drawing, tour(found, route)]


def tour(shapes: Shapes, route: str) -> Tour:
    """The lessons along a route, each once, ending with the finished picture."""
    return Tour(route, tuple(dict.fromkeys(box.lesson for box in boxes(shapes) if route in box.routes)))


LESSON = Lesson(
    key="map",
    title="Map",
    text=(
        "This is everything that happens between a prompt and a picture, in the shapes of the model that is chosen on "
        "the left. *Latents* are the small picture that the diffusion works on, the *U-Net* is the network that says "
        "which part of them is noise, and the *sampler* takes it away, a little at a time. Choose a route to see what "
        "it passes. Every box leads to a lesson about it; the tour takes you through all that a route passes. If this "
        'is new to you, begin with "A flat world", which needs nothing but two numbers, and go on from there with the '
        "buttons below; the glossary explains every term."
    ),
    compute=compute,
    show=show,
    views=(Options("route", "Route", ROUTES),),
    papers=(LDM,),
)
