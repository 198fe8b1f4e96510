"""Entry script of the page: imported once for `app`, the server, then run at every interaction to draw the page."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from stable_diffusion.webui import main

if get_script_run_ctx(suppress_warning=True) is None:
    # Streamlit finds this by reading the file.
    app = st.App(__file__, routes=main.routes(), middleware=main.middleware())
else:
    main.draw()
