"""The API described from its tables: /openapi.json for programs, docs/http.md for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ... import __version__
from .endpoint import Endpoint
from .fields import HONOURED, IGNORED, REFUSED, Field

HEAD = """\
# The HTTP API

Programs that speak A1111's `/sdapi/v1` or OpenAI's `/v1/images` work with this one: give them its address.

```sh
stable-diffusion serve                              # http://127.0.0.1:7860, for this machine alone
stable-diffusion serve --host 0.0.0.0 --api-key KEY --allow-host studio.local
curl -s localhost:7860/sdapi/v1/txt2img -H 'content-type: application/json' \\
    -d '{"prompt": "a red house", "seed": 7}' | jq -r '.images[0]' | base64 -d > house.png
```

The page (`./webui.sh`, `stable-diffusion page`) serves the same API at its own address, with one queue and one gallery:
what clients paint appears in the gallery. Pictures are those of the command line with the same settings.

- **Bodies** are `application/json` (`/v1/images/edits`: `multipart/form-data`) of up to 64 MB. Pictures are base64,
  plain or as data URLs; other URLs are refused and never fetched. One request paints up to 100 pictures of up to
  2048 x 2048 pixels.
- **Fields** that are not listed are ignored. *Refused* ones answer 422, by name, if they ask for what would change the
  picture; empty values, zero and false are fine.
- **Errors** are `{"detail": ...}`, at `/v1` `{"error": {"message", "type", "param", "code"}}`. A full queue answers 503
  with `Retry-After`. A client that closes its connection cancels its job.
- **Keys**: beyond this machine `serve` needs `--api-key` (as a Bearer token, or as the password of any user) or
  `--api-auth user:password`; the page's API takes the page's password instead, likewise as a Bearer token or as the
  password of any user. Without a key any authorization is ignored. After ten wrong ones in a minute from one address,
  none is accepted from there until the minute is over (429). Links to pictures (`response_format` url) need neither
  key nor password: nobody can guess them, and they expire after an hour. Hosts and pages (`Origin`) other than this
  machine's and `host.docker.internal` need `--allow-host`, pages elsewhere that call it from a browser
  `--allow-origin`.
- **Names** of models, VAEs, LoRAs and samplers are looked up in lists. They never become paths, and nothing is
  downloaded.

`/openapi.json` says the same to programs. This file is made by `python scripts/http_docs.py`.

## Routes

| route | what it does |
|---|---|
"""


def openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    for each in endpoints:
        paths.setdefault(_plain(each.path), {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stable Diffusion for MLX",
            "version": __version__,
            "description": "What A1111's and OpenAI's clients ask.",
        },
        "paths": paths,
        "components": {"securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"},
        }},
        "security": [{}, {"bearer": []}, {"basic": []}],
    }  # fmt: skip


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", _plain(endpoint.path)).strip("_")
    found: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}_{name}",
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": "Done"},
            "default": {"description": "Refused", "content": {"application/json": {"schema": {"type": "object"}}}},
        },
    }
    if parameters := re.findall(r"{(\w+)", endpoint.path):
        found["parameters"] = [
            {"name": each, "in": "path", "required": True, "schema": {"type": "string"}} for each in parameters
        ]
    if endpoint.fields:
        kind = "multipart/form-data" if endpoint.multipart else "application/json"
        found["requestBody"] = {"content": {kind: {"schema": _schema(endpoint.fields)}}}
    return found


def _schema(fields: Sequence[Field]) -> dict[str, Any]:
    required = [field.name for field in fields if field.required]
    properties = {}
    for field in fields:
        said = ": ".join(filter(None, (field.status, field.note)))
        properties[field.name] = {"type": [field.type, "null"], "description": said}
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def _plain(path: str) -> str:
    return re.sub(r":path}", "}", path)


def markdown(endpoints: Sequence[Endpoint]) -> str:
    """docs/http.md."""
    lines = [HEAD.rstrip("\n")]
    lines += [f"| {each.method} {_plain(each.path)} | {each.summary.rstrip('.')} |" for each in endpoints]
    for each in endpoints:
        if each.fields:
            lines += ["", f"## {each.method} {each.path}", ""]
            lines += _table(each.fields)
    return "\n".join(lines) + "\n"


def _table(fields: Sequence[Field]) -> Iterator[str]:
    yield "| field | | |"
    yield "|---|---|---|"
    for status in (HONOURED, IGNORED, REFUSED):
        for field in fields:
            if field.status == status:
                yield f"| `{field.name}` | {status} | {field.note} |"
