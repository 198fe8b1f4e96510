"""The page that starts from a picture and a prompt."""

from webui.components import form

form.prompts()
form.input_picture()
form.buttons("picture")
