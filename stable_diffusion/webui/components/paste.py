"""A picture pasted anywhere on a page goes to the page's upload field."""

import streamlit as st

# Where a text is pasted that comes with a picture, as from a word processor, a text field keeps the text.
LISTENER = """
export default function () {
    const take = (event) => {
        const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"))
        const field = document.querySelector('[data-testid="stFileUploader"] input[type=file]')
        const typing = event.target.closest?.("textarea, input:not([type=file])")
        if (!files.length || !field || (typing && event.clipboardData.getData("text/plain"))) return
        const given = new DataTransfer()
        given.items.add(files[0])
        field.files = given.files
        field.dispatchEvent(new Event("change", { bubbles: true }))
        event.preventDefault()
    }
    document.addEventListener("paste", take)
    return () => document.removeEventListener("paste", take)
}
"""
_listen = st.components.v2.component("paste_listener", js=LISTENER)


def draw() -> None:
    """Start listening; the element takes no space."""
    _listen(key="paste_listener", height=1)
