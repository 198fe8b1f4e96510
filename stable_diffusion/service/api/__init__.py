"""The HTTP interfaces that other programs speak: A1111's /sdapi/v1 and OpenAI's /v1/images, over the one worker.

Handlers hold plain objects only: pictures are painted by `shared.the_worker()`, never here. docs/http.md lists every
route and field, and is made from the tables of this folder.
"""
