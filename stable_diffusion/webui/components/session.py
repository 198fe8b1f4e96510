"""What this tab remembers: its settings, jobs and input picture; and the worker and downloads that tabs share."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image
from streamlit.runtime.uploaded_file_manager import UploadedFile

from stable_diffusion import catalogue, prompts
from stable_diffusion.adapters.lora_recipe import first_recipe
from stable_diffusion.pictures.inpainting import suitable_size
from stable_diffusion.recipes import Recipe
from stable_diffusion.record.inputs import InputFile, recordable
from stable_diffusion.request import GRID, Request
from stable_diffusion.sampler import takes_eta
from stable_diffusion.service import loras, presets, values
from stable_diffusion.service.jobs import Job, Picture, State, Task
from stable_diffusion.service.masks import Painting
from stable_diffusion.service.shared import outputs
from stable_diffusion.service.shared import the_downloads as the_downloads
from stable_diffusion.service.shared import the_worker as the_worker
from stable_diffusion.webui.components import prompt_texts

CATALOGUE_AGE = 2.0  # seconds
PATIENCE = 5.0  # seconds that a run of the page waits for a task
MAX_FILE_NAME = 255  # characters
FRESH: dict[str, Any] = {  # the form's initial values, except those that the model decides
    **values.fresh(),
    "model": catalogue.DEFAULT,
    "loras": (),
    "styles": (),
    "file_format": Request.file_format,
    "previews": Request.previews,
    "forever": False,
}


@st.cache_resource(ttl=CATALOGUE_AGE, show_spinner=False)
def _catalogue() -> list[catalogue.Model]:
    """Refreshed after CATALOGUE_AGE, not at every click."""
    return catalogue.all()


def listed_models() -> list[catalogue.Model]:
    """Every model to choose from, those that were looked up on the hub in this tab included."""
    known = _catalogue()
    names = {model.name for model in known}
    return [*known, *(model for name, model in looked_up().items() if name not in names)]


def looked_up() -> dict[str, catalogue.Model]:
    """The hub's models that were looked up in this tab, by name."""
    return st.session_state.setdefault("looked_up", {})


def refresh_lists() -> None:
    """Look for models and LoRAs now, and say which ones are new."""
    before = {*(model.name for model in _catalogue()), *loras_here()}
    _catalogue.clear()
    loras_here.clear()
    models, found = _catalogue(), loras_here()
    new = sorted({*(model.name for model in models), *found} - before, key=str.casefold)
    words = f"{len(models)} models and {len(found)} LoRAs. " + (f"New: {', '.join(new[:5])}" if new else "None is new.")
    st.toast(plain(words + (f" and {len(new) - 5} more" if len(new) > 5 else "")), icon=":material/refresh:")


@st.cache_resource(ttl=CATALOGUE_AGE, show_spinner=False)
def loras_here() -> dict[str, str]:
    """Every LoRA to choose from, by name, with its family if known."""
    return {name: loras.family(path) for name, path in loras.listed().items()}


def presets_file() -> Path:
    """Where settings are saved by name."""
    return outputs() / "presets.json"


def current_job() -> Job | None:
    """The job that this tab shows: of its own, the one that runs, else the first that waits, else the last."""
    jobs = own_jobs()
    for states in ((State.LOADING, State.RUNNING), (State.QUEUED,)):
        if job := next((job for job in jobs if job.state in states), None):
            return job
    return max(jobs, key=lambda job: job.ended or 0.0, default=None)


def own_jobs() -> list[Job]:
    """The jobs that this tab started or watches; a reload keeps the one in the address."""
    ids = st.session_state.get("job_ids") or [st.query_params.get("job")]
    found = (the_worker().job(each) for each in ids)
    return [the_worker().latest(job) for job in found if job is not None]


def shown_job() -> Job | None:
    """The job whose pictures this tab shows: the current one, or, if that has none, the last one that had."""
    job = current_job()
    if job is not None and (job.active or job.visible):
        st.session_state["shown_id"] = job.id
        return job
    shown = the_worker().job(st.session_state.get("shown_id"))
    return shown if shown is not None and shown.visible else None


def shown_picture() -> Picture | None:
    """The picture that the panel shows: the newest while a job runs, then the chosen one; of all, the first."""
    job = shown_job()
    pictures = [] if job is None else [picture for picture in job.pictures if picture.visible]
    if job is None or not pictures:
        return None
    chosen = st.session_state.get(f"picture-{job.id}")
    if job.active:
        return pictures[-1]
    return pictures[chosen] if isinstance(chosen, int) and 0 <= chosen < len(pictures) else pictures[0]


def add_job(job: Job) -> None:
    """Let this tab follow a job, after those that it follows already."""
    st.session_state["job_ids"] = [*(each.id for each in own_jobs() if each.active), job.id]


def watch(job: Job) -> None:
    """Let this tab show a job, whoever started it."""
    st.session_state["job_ids"] = [job.id]
    st.session_state["forever"] = job.repeat


def repeat_jobs() -> None:
    """Let this tab's active jobs repeat, or not, as the form says."""
    for job in own_jobs():
        if job.active:
            job.repeat = st.session_state["forever"]


def wait_for(task: Task) -> None:
    """Wait briefly for a task that is next, or runs."""
    end = time.monotonic() + PATIENCE
    while task.active and the_worker().position(task) == 0 and time.monotonic() < end:
        time.sleep(0.01)


def begin() -> None:
    """Fill in settings that the browser has none of yet: those of the job in the address, or the default model's."""
    job = current_job()
    fresh = "model" not in st.session_state
    for key, value in FRESH.items():
        st.session_state.setdefault(key, list(value) if isinstance(value, tuple) else value)
    if fresh:
        apply_defaults()
        if job is not None:
            recall(job.request)
            st.session_state["forever"] = job.repeat and job.active
    _make_showable()
    if job is not None:
        st.session_state["job_id"] = job.id
        st.session_state["job_ids"] = [each.id for each in own_jobs() if each.active or each is job]
        if st.query_params.get("job") != job.id:
            st.query_params["job"] = job.id
    elif "job" in st.query_params:
        del st.query_params["job"]


def _make_showable() -> None:
    """Replace values that the form cannot show: set by others, or of models that have gone."""
    state = st.session_state
    known = [model.name for model in listed_models()]
    if state["model"] not in known:
        state["form_problem"] = f"The model {state['model']!r} is no longer there; {catalogue.DEFAULT} is used instead."
        state["model"] = catalogue.DEFAULT
        apply_defaults()
    for key, value in values.clean({key: state.get(key) for key in values.KEYS}, known).items():
        if state.get(key) != value and not (key in values.TYPED and isinstance(state.get(key), str)):
            state[key] = value
    typed = prompts.without_default(state["negative"], default_negative())
    if typed != state["negative"]:
        state["negative"] = typed


def chosen_model() -> catalogue.Model:
    """The model that the dropdown shows."""
    name = st.session_state["model"]
    return next((model for model in listed_models() if model.name == name), None) or catalogue.find(catalogue.DEFAULT)


def default_negative() -> str:
    """What is added to every negative prompt, unless that is switched off."""
    return prompts.default_negative(chosen_model()) if st.session_state.get("default_negative", True) else ""


def apply_defaults() -> None:
    """Set steps, guidance and size to the chosen model's defaults."""
    model = chosen_model()
    st.session_state.pop("before_recipe", None)
    width, height = values.usual_size(model)
    put(
        {
            "steps": model.defaults.steps,
            "cfg": model.defaults.cfg,
            "sampler": model.defaults.sampler,
            "strength": model.defaults.strength,
            "width": width,
            "height": height,
        }
    )


def recipe() -> Recipe | None:
    """The recipe of what the form would paint with: a LoRA for few steps, or the model itself."""
    state = st.session_state
    return first_recipe(state.get("loras") or (), state.get("prompt", "")) or chosen_model().recipe


def follows_recipe(recipe: Recipe) -> bool:
    """Whether the form has a recipe's settings."""
    state = st.session_state
    own = values.join_sampler(state["sampler"], state.get("schedule", values.OWN))
    return (state["steps"], state["cfg"], own) == (recipe.steps, recipe.cfg, recipe.sampler)


def follow_recipe() -> None:
    """Put the recipe's settings into the form, and remember what they replace."""
    found, state = recipe(), st.session_state
    if found is not None and not follows_recipe(found):
        state["before_recipe"] = {name: state[name] for name in ("steps", "cfg", "sampler", "schedule")}
        put({"steps": found.steps, "cfg": found.cfg, "sampler": found.sampler})


def undo_recipe() -> None:
    """Put back what the recipe's settings replaced, or else what suits an ordinary model of this family."""
    usual = chosen_model().ordinary
    before = {"steps": usual.steps, "cfg": usual.cfg, "sampler": usual.sampler}
    put(st.session_state.pop("before_recipe", None) or before)


def loras_changed(before: Recipe | None) -> None:
    """Follow the recipe of a LoRA that was added; undo that of one that was taken off, if the form still follows it."""
    now = recipe()
    if now is not None and now != before:
        follow_recipe()
    elif now is None and before is not None and follows_recipe(before):
        undo_recipe()


def put(settings: Mapping[str, Any]) -> None:
    """Put settings into the form, as far as it can show them; unknown models are left out."""
    st.session_state.update(values.clean(settings, [model.name for model in listed_models()]))


def recall(request: Request) -> None:
    """Put a request's values back into the form."""
    put({"model": request.model})
    apply_defaults()
    asked = {key: getattr(request, key) for key in values.KEYS if hasattr(request, key)}
    put({key: values.FORM[key].to_form(value) if key in values.FORM else value for key, value in asked.items()})
    if request.picture is not None:
        begin_from(request.picture, request.picture_file)
        if request.mask is not None:
            st.session_state["painting"] = Painting(request.picture, request.mask)


def recall_seed() -> None:
    """Put the seed of the picture that is shown into the form, and that of its variation."""
    picture = shown_picture()
    if picture is not None:
        put({"seed": picture.seed, "variation_seed": picture.variation_seed})


def settings_of_form() -> dict[str, Any]:
    """The form's values, as a preset keeps them."""
    prompt_texts.receive()
    return {key: st.session_state[key] for key in values.KEYS}


def recall_preset(name: str) -> None:
    """Put a preset's values into the form."""
    found = presets.load(presets_file()).get(name)
    if found:
        put({"model": found.get("model")})
        apply_defaults()
        put(found)


def take_shape() -> None:
    """Set width and height to the shape of the input picture, as large as the model paints best."""
    picture: Image.Image | None = st.session_state.get("input_picture")
    if picture is not None:
        width, height = suitable_size(picture.size, values.usual_size(chosen_model()))
        put({"width": width, "height": height})


def take_size() -> None:
    """Set width and height to the size of the input picture, as nearly as the form can."""
    picture: Image.Image | None = st.session_state.get("input_picture")
    if picture is not None:
        width, height = (round(side / GRID) * GRID for side in picture.size)
        put({"width": width, "height": height})


def request_from_form(input_picture: Image.Image | None, mask: Image.Image | None = None) -> Request:
    """Gather the form into a request. Raises InputError for what is not valid in it."""
    prompt_texts.receive()
    state = st.session_state
    numbers: dict[str, Any] = {
        name: values.typed(name, state[name]) for name in values.TYPED if name != "variation_seed"
    }
    if state["variation_strength"]:
        numbers["variation_seed"] = values.typed("variation_seed", state["variation_seed"])
    if state["by"] and input_picture is not None and mask is None:
        numbers |= {"width": None, "height": None}  # the picture's own, enlarged
    if not takes_eta(state["sampler"]):
        numbers["eta"] = None
    return Request.from_values(
        {key: state[key] for key in values.KEYS if key not in values.TYPED} | numbers,
        prompt=state["prompt"].strip(),
        negative=state["negative"].strip(),
        sampler=values.join_sampler(state["sampler"], state.get("schedule", values.OWN)),
        loras=tuple((name, strength) for name, strength in state["loras"]),
        styles=tuple(state["styles"]),
        previews=tuple(state["previews"] or ()),
        picture=input_picture,
        picture_file=_input_file(input_picture),
        mask=mask,
    )


def begin_from(picture: Image.Image, file: InputFile | None = None) -> None:
    """Set the input picture; `file` is what it was read from, for the record of its results."""
    st.session_state["input_picture"] = picture
    st.session_state["input_file"] = (picture, file)


def input_file(upload: UploadedFile) -> InputFile:
    """An uploaded file, under its original name."""
    return InputFile(recordable(upload.name[-MAX_FILE_NAME:]), upload.getvalue())


def _input_file(picture: Image.Image | None) -> InputFile | None:
    read, file = st.session_state.get("input_file", (None, None))
    return file if picture is not None and read is picture else None


def plain(text: str) -> str:
    """Escape a text for places that interpret Markdown, so that it shows as written."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:^&@=\"'" else c for c in text)
    return escaped.replace("\n", "  \n")
