"""The page's entry script. A pages/ folder next to it would be run by Streamlit, file by file, as pages of its own."""
