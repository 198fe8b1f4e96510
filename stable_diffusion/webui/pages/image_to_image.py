"""The page that starts from a picture and a prompt."""

from stable_diffusion.webui.components import form, larger

form.prompts()
form.input_picture()
larger.draw()
form.buttons("picture")
