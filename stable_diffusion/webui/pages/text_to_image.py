"""The page that starts from a prompt alone."""

from stable_diffusion.webui.components import form, second_pass

form.prompts()
second_pass.draw()
form.buttons("text")
