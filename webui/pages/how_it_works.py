"""The page that teaches: one lesson at a time, computed with the loaded model."""

from webui.components import lesson

lesson.draw()
