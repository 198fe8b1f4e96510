"""A picture pasted anywhere on a page goes to the page's upload field, and so does one dragged there from the page.

From there on it is an upload like any other, with the same checks.
"""

from collections.abc import Sequence

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

PASTED = "pasted "  # begins the names of such files
SEEN = "pasted_seen"
HELP = "Drop a file, choose one, or copy a picture elsewhere and paste it anywhere on this page."
# Where a text is pasted that comes with a picture, as from a word processor, a text field keeps the text.
LISTENER = """
export default function ({ data }) {
    const uploader = '[data-testid="stFileUploader"]'
    const give = (file, name) => {
        const field = document.querySelector(`${uploader} input[type=file]`)
        if (!field || field.disabled) return false
        const given = new DataTransfer()
        given.items.add(new File([file], name, { type: file.type }))
        field.files = given.files
        field.dispatchEvent(new Event("change", { bubbles: true }))
        return true
    }
    const paste = (event) => {
        const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"))
        const typing = event.target.closest?.("textarea, input:not([type=file])")
        if (!file || (typing && event.clipboardData.getData("text/plain"))) return
        if (give(file, data.prefix + file.name)) event.preventDefault()
    }
    // A picture of this page: only its address is dragged.
    const address = (event) => event.target.closest?.(uploader) && event.dataTransfer?.types.includes("text/uri-list")
    const over = (event) => address(event) && event.preventDefault()
    const drop = async (event) => {
        if (!address(event) || event.dataTransfer.files.length) return
        event.preventDefault()
        event.stopPropagation()
        const url = new URL(event.dataTransfer.getData("text/uri-list").split(/[\\r\\n]/)[0], location.href)
        if (url.protocol !== "data:" && url.origin !== location.origin) return
        const file = await (await fetch(url)).blob()
        const name = url.protocol === "data:" ? "" : url.pathname.split("/").at(-1)
        if (file.type.startsWith("image/")) give(file, name || `picture.${file.type.slice(6)}`)
    }
    const listening = new AbortController()
    const { signal } = listening
    document.addEventListener("paste", paste, { signal })
    document.addEventListener("dragover", over, { signal, capture: true })
    document.addEventListener("drop", drop, { signal, capture: true })
    return () => listening.abort()
}
"""
_listen = st.components.v2.component("paste_listener", js=LISTENER)


def draw(uploads: UploadedFile | Sequence[UploadedFile] | None) -> None:
    """Start listening, and say which of the upload field's files was pasted just now; the element takes no space."""
    _listen(key="paste_listener", data={"prefix": PASTED}, height=1)
    files = [uploads] if isinstance(uploads, UploadedFile) else list(uploads or ())
    pasted = [file for file in files if is_pasted(file)]
    seen = st.session_state.setdefault(SEEN, set())
    if any(file.file_id not in seen for file in pasted):
        st.toast("A picture was pasted from the clipboard.", icon=":material/content_paste:")
    st.session_state[SEEN] = seen | {file.file_id for file in pasted}


def is_pasted(upload: UploadedFile | None) -> bool:
    """Whether a file of an upload field was pasted."""
    return upload is not None and upload.name.startswith(PASTED)
