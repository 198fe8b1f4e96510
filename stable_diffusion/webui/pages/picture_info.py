"""The page that reads what a picture says about itself."""

from stable_diffusion.webui.components import picture_info

picture_info.show()
