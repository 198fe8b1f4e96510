"""The page's entry script with lessons that compute less, for the test that visits all of them."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from stable_diffusion.webui import main
from stable_diffusion.webui.components import lesson
from tests import small_lessons

for module, name, value in (*small_lessons.NUMBERS, (lesson, "STEPS", 6)):
    setattr(module, name, value)

if get_script_run_ctx(suppress_warning=True) is None:
    app = st.App(__file__, routes=main.routes(), middleware=main.middleware())
else:
    main.draw()
