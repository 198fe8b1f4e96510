"""The page that starts from a prompt alone."""

from webui.components import form

form.prompts()
form.buttons("text")
