"""The page that starts from a prompt alone."""

from stable_diffusion.webui.components import form

form.prompts()
form.buttons("text")
