"""The browser page: a worker that owns the engine, and the pages and panels that show what it does."""
