"""The page that starts from a picture and a prompt."""

from stable_diffusion.webui.components import form

form.prompts()
form.input_picture()
form.buttons("picture")
