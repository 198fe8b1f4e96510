"""The page that varies one to three settings, and shows what each does."""

from stable_diffusion.webui.components import grid

grid.draw()
