"""The page of models, LoRAs, embeddings, VAEs and upscalers."""

from stable_diffusion.webui.components import model_cards

model_cards.show()
