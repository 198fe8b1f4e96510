"""Entry script for `streamlit run app.py`; `stable-diffusion page` uses the package's, webui/server/entry.py."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from stable_diffusion.webui import main

if get_script_run_ctx(suppress_warning=True) is None:
    app = st.App(__file__, routes=main.routes(), middleware=main.middleware())
else:
    main.draw()
