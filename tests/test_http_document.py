"""What is written of the HTTP API is what it does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from stable_diffusion.service.api import a1111_grids, a1111_hires, a1111_request, openai
from stable_diffusion.service.api.document import openapi
from stable_diffusion.service.api.errors import ApiError
from stable_diffusion.service.api.fields import HONOURED, IGNORED, REFUSED, read_fields
from stable_diffusion.service.api.routes import ENDPOINTS, routes

ROOT = Path(__file__).parents[1]
document = runpy.run_path(str(ROOT / "scripts" / "http_docs.py"))["document"]
WITH_FIELDS = [each for each in ENDPOINTS if each.fields]
BY_TYPE = {"string": "x", "integer": 3, "number": 0.5, "boolean": True, "array": ["x"], "object": {"x": 1}}


def test_the_file_is_what_the_tables_say():
    assert (ROOT / "docs" / "http.md").read_text(encoding="utf-8") == document(), "run python scripts/http_docs.py"


def test_every_route_has_a_line_and_every_field_its_place():
    text = document()
    for route in routes():
        for method in route.methods - {"HEAD"}:
            assert f"| {method} {route.path.replace(':path', '')} | " in text
    for each in WITH_FIELDS:
        part = text.partition(f"## {each.method} {each.path}\n")[2].partition("\n## ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) == {field.name for field in each.fields}


@pytest.mark.parametrize("endpoint", WITH_FIELDS, ids=lambda each: f"{each.method} {each.path}")
def test_fields_are_read_as_the_tables_say(endpoint):
    names = [field.name for field in endpoint.fields]
    assert len(names) == len(set(names))
    given = {field.name: BY_TYPE[field.type] for field in endpoint.fields if field.required}
    for field in endpoint.fields:
        values = given | {field.name: BY_TYPE[field.type]}
        if field.status == REFUSED:
            with pytest.raises(ApiError, match=field.name):
                read_fields(values, endpoint.fields)
            assert field.name not in read_fields(given | {field.name: None}, endpoint.fields)
        else:
            assert (field.name in read_fields(values, endpoint.fields)) is (field.status == HONOURED)


@pytest.mark.parametrize("module", [a1111_request, openai])
def test_every_honoured_field_is_used(module):
    files = [module, a1111_hires, a1111_grids] if module is a1111_request else [module]
    source = "".join(Path(each.__file__).read_text() for each in files)
    tables = (a1111_request.TEXT_FIELDS, a1111_request.PICTURE_FIELDS) if module is a1111_request else (
        openai.FIELDS, openai.EDIT_FIELDS,
    )  # fmt: skip
    for field in {field for table in tables for field in table if field.status == HONOURED}:
        assert source.count(f'"{field.name}"') >= 2, f"{field.name} is in the table, and nobody reads it"


def test_the_description_names_every_route_once():
    found = openapi(ENDPOINTS)
    operations = [operation["operationId"] for path in found["paths"].values() for operation in path.values()]
    assert len(operations) == len(set(operations)) == len(ENDPOINTS)
    schema = found["paths"]["/sdapi/v1/txt2img"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["restore_faces"]["description"].startswith(REFUSED)
    assert schema["properties"]["force_task_id"]["description"].startswith(IGNORED)
