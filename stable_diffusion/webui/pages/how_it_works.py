"""The page that teaches: one lesson at a time, computed with the loaded model."""

from stable_diffusion.webui.components import about_machine, lesson

lesson.draw()
about_machine.draw()
