"""The page that repaints a part of a picture: the part that a mask is painted over."""

from stable_diffusion.webui.components import form, inpainting

inpainting.picture()  # first, so that the result stands beside it
form.prompts()
inpainting.settings()
form.buttons("mask")
