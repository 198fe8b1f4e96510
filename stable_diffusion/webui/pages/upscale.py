"""The page that enlarges pictures."""

from stable_diffusion.webui.components import upscale

upscale.show()
