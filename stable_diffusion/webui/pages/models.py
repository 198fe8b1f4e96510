"""The page of models."""

from stable_diffusion.webui.components import merging

merging.draw()
