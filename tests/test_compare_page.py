"""Grids in the queue, and the page that paints them."""

from __future__ import annotations

import io
import threading

import pytest
from PIL import Image

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

from stable_diffusion.compare import axes, plan
from stable_diffusion.record import picture_files
from stable_diffusion.request import Request
from stable_diffusion.service.jobs import Comparison, State
from stable_diffusion.service.worker import Worker
from stable_diffusion.webui.components import compare_grid, session
from stable_diffusion.webui.components import grid as grid_page
from tests.pretend import over, wait
from tests.test_app import button, engine, labelled, open_page, page  # noqa: F401

PAGE = "stable_diffusion/webui/pages/compare.py"


@pytest.fixture
def worker(engine, tmp_path):  # noqa: F811
    worker = Worker(tmp_path / "outputs")
    yield worker
    if engine.gate is not None:
        engine.gate.release(10_000)
    worker.close()


def planned(*texts, **more):
    return plan.plan(Request("a", **{"seed": 5, "steps": 2} | more), [axes.read(text) for text in texts])


def test_every_cell_is_painted_with_its_settings_and_models_are_loaded_once_each(engine, worker):  # noqa: F811
    grid = planned("cfg=1-3", "bits=default,8")
    job = worker.compare(grid)
    over(job)
    assert job.state is State.DONE and not job.problems and job.fraction == 1 and job.n_images == 6
    assert [options for _, options in engine.loads] == [{}, {"bits": 8}]
    for cell in grid.cells:
        said = picture_files.read_parameters(job.picture_of(cell).path)
        assert said.cfg == cell.request.cfg and said.extra.get("Bits") == (cell.request.bits and "8")
    assert len(job.finished()) == 6 and worker.latest_comparison() is job


def test_a_cell_that_fails_does_not_stop_the_others(engine, worker):  # noqa: F811
    grid = planned("steps=1,2,3")
    engine.fail_at = 3
    job = worker.compare(grid)
    over(job)
    assert job.state is State.DONE and list(job.problems) == [grid.cells[2].digest] and len(job.finished()) == 2
    absent = worker.compare(plan.Plan(grid.axes, tuple(_of_model(cell, "absent") for cell in grid.cells)))
    over(absent)
    assert len(absent.problems) == 3 and "No model 'absent'" in next(iter(absent.problems.values()))
    assert len(absent.pictures) == 3 and not absent.finished()


def _of_model(cell, name):
    import dataclasses

    return plan.Cell(cell.place, dataclasses.replace(cell.request, model=name))


def test_a_grid_that_was_stopped_goes_on(engine, worker):  # noqa: F811
    engine.gate = threading.Semaphore(4)  # two cells
    grid = planned("cfg=1-4")
    job = worker.compare(grid)
    wait(lambda: len(job.finished()) == 2)
    worker.cancel(job)
    engine.gate.release(1)
    over(job)
    assert job.state is State.CANCELLED and len(job.finished()) == 2
    engine.gate.release(100)
    job.picture_of(grid.cells[0]).path.unlink()
    again = worker.compare(grid, job.finished())
    over(again)
    assert len(again.cells) == 3 and len(again.finished()) == 4, "what was deleted is painted again"
    assert again.picture_of(grid.cells[1]) is job.picture_of(grid.cells[1])
    nothing = worker.compare(grid, again.finished())
    over(nothing)
    assert not nothing.pictures and nothing.state is State.DONE and len(nothing.finished()) == 4


def test_cells_of_earlier_grids_are_kept_and_not_counted(engine, worker):  # noqa: F811
    first = worker.compare(planned("cfg=1-4"))
    over(first)
    other = worker.compare(planned("cfg=4,5"), first.kept())
    over(other)
    assert len(other.cells) == 1 and len(other.finished()) == 2 and len(other.kept()) == 5
    back = worker.compare(planned("cfg=1-4"), other.kept())
    over(back)
    assert not back.cells and len(back.finished()) == 4


def test_what_the_browser_gets(engine, worker):  # noqa: F811
    grid = planned("cfg=1-2", "steps=1,2", "seed=1,2")
    job = worker.compare(grid)
    over(job)
    data = compare_grid._data(job)
    assert data["columns"] == ["CFG: 1", "CFG: 2"] and [table["title"] for table in data["tables"]] == [
        "Seed: 1",
        "Seed: 2",
    ]
    cells = [cell for table in data["tables"] for row in table["rows"] for cell in row["cells"]]
    assert [cell["index"] for cell in cells] == list(range(8)) and {cell["state"] for cell in cells} == {"finished"}
    assert cells[0]["src"].startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(grid_page._sheet(job))) as whole:
        assert "X/Y/Z plot" in whole.text["parameters"] and whole.width > 128
    assert grid_page._table(job).splitlines()[0].startswith("file,x: CFG,y: Steps,z: Seed,Prompt")


# --- The page


@pytest.fixture
def compared(page):  # noqa: F811
    page.switch_page(PAGE)
    page.run()
    assert not page.exception
    labelled(page.text_area, "Prompt").set_value("a {red|blue} house")
    labelled(page.text_input, "Values of the columns").set_value("1-3")
    page.run()
    return page


def paint(page):  # noqa: F811
    button(page, "Paint grid").click()
    page.run()
    assert not page.exception
    job = session.the_worker().latest_comparison()
    if job is not None:
        over(job)
        page.run()
        assert not page.exception
    return job


def test_the_page_paints_a_grid_and_opens_a_cell(compared, engine):  # noqa: F811
    assert any("3 pictures" in each.value for each in compared.caption)
    job = paint(compared)
    assert isinstance(job, Comparison) and len({text for text, _ in engine.models[0].calls}) == 1, (
        "one seed, one prompt"
    )
    assert [arguments["num_steps"] for _, arguments in engine.models[0].calls] == [1, 2, 3]
    assert any("3 of 3 cells" in each.value for each in compared.caption)
    compared.session_state["compare_open"] = 1
    compared.run()
    assert any(session.plain("Steps: 2") in each.value for each in compared.markdown) and not compared.exception
    button(compared, "Close").click()
    compared.run()
    labelled(compared.text_input, "Values of the columns").set_value("2-4")
    compared.run()
    labelled(compared.text_input, "Seed").set_value(str(job.plan.cells[0].request.seed))
    compared.run()
    assert paint(compared) is not job and len(engine.models[0].calls) == 4, "two of the three are there"


def test_mistakes_are_said_before_anything_is_painted(compared, engine):  # noqa: F811
    values = "Values of the columns"
    for typed, message in (("a-b", "should be a whole number"), ("1-1000 (+1)", "tick the box"), ("", "has no values")):
        labelled(compared.text_input, values).set_value(typed)
        compared.run()
        button(compared, "Paint grid").click()
        compared.run()
        said = [each.value for each in (*compared.error, *compared.warning)]
        assert any(session.plain(message) in each for each in said) and not compared.exception, (typed, said)
    labelled(compared.selectbox, "Rows").set_value("steps")
    compared.run()
    labelled(compared.text_input, values).set_value("1,2")
    compared.run()
    assert any("stands on two axes" in each.value for each in compared.warning)
    assert session.the_worker().latest_comparison() is None and not engine.models


def test_the_values_of_a_list_can_be_taken_all(compared):
    labelled(compared.selectbox, "Rows").set_value("prompt_language")
    compared.run()
    button(compared, "All").click()
    compared.run()
    assert labelled(compared.text_input, "Values of the rows").value == "a1111, plain"


def test_a_prompt_matrix(compared, engine):  # noqa: F811
    labelled(compared.text_area, "Prompt").set_value("a house|snow|night")
    (kind,) = [each for each in compared.button_group if each.label == "Vary"]
    kind.set_value(grid_page.MATRIX)
    compared.run()
    paint(compared)
    assert [text for text, _ in engine.models[0].calls] == [
        "a house",
        "a house, snow",
        "a house, night",
        "a house, snow, night",
    ]


def test_another_tab_and_other_pages_stand_it(compared, engine):  # noqa: F811
    job = paint(compared)
    other = open_page()
    assert not other.exception and job.id not in str(other.query_params)
    assert isinstance(other, AppTest)
