"""The page of all finished pictures."""

from stable_diffusion.webui.components import browse

browse.show()
