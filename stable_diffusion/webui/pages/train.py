"""The page that teaches a model a subject, a style or a word."""

from stable_diffusion.webui.components import teaching

teaching.show()
