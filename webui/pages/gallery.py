"""The page of all finished pictures."""

from webui.components import browse

browse.show()
