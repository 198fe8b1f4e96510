"""The page that leads from one picture to another, frame by frame."""

from stable_diffusion.webui.components import morph

morph.draw()
