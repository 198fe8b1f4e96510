"""The page that repaints a part of a picture: the part that a mask is painted over."""

from webui.components import form, inpainting

form.prompts()
inpainting.draw()
form.buttons("mask")
