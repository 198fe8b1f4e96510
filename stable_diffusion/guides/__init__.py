"""Small networks that judge what is being painted, and whose gradients steer it."""
