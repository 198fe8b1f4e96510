"""Which number fields hold something that they refuse, so that nothing is painted with the value before it.

Streamlit marks such a field, keeps its last valid value, and does not tell Python.
"""

from typing import Any

import streamlit as st

from stable_diffusion.errors import InputError
from stable_diffusion.webui.components.details import one_line

KEY = "field_guard"
MAX_SHOWN = 40  # characters of a label or a value
LISTENER = """
export default function ({ parentElement, setStateValue }) {
    const wrong = ({ disabled, validity }) =>
        !disabled && (validity.rangeUnderflow || validity.rangeOverflow || validity.badInput)
    const look = () => {
        const fields = [...document.querySelectorAll('[data-testid="stNumberInput"] input[type=number]')]
        const found = fields.filter(wrong).map((field) => ({
            label: field.getAttribute("aria-label") ?? field.labels?.[0]?.textContent ?? "",
            value: field.value,
            low: field.min,
            high: field.max,
        }))
        const now = JSON.stringify(found)
        if (now === (parentElement.sent ?? "[]")) return
        parentElement.sent = now
        setStateValue("invalid", found)
    }
    const listening = new AbortController()
    const { signal } = listening
    for (const name of ["input", "focusout", "pointerdown", "keydown"]) {
        window.addEventListener(name, look, { capture: true, signal })
    }
    return () => listening.abort()
}
"""
_listen = st.components.v2.component(KEY, js=LISTENER)


def draw() -> None:
    """Start listening; the element takes no space."""
    _listen(key=KEY, on_invalid_change=lambda: None, height=1)


def check() -> None:
    """Raise InputError, naming the fields, if any holds a value that it refuses."""
    fields = (st.session_state.get(KEY) or {}).get("invalid") or []
    if words := [_in_words(field) for field in fields if isinstance(field, dict)]:
        raise InputError(" ".join(words))


def _in_words(field: dict[str, Any]) -> str:
    label, value, low, high = (
        one_line(str(field.get(key, "")), MAX_SHOWN) for key in ("label", "value", "low", "high")
    )
    return f"{label}: {value or 'this'} should be a number from {low} to {high}."
