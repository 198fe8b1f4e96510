"""The page's entry script. No pages/ folder may stand next to it: Streamlit would run its files as pages of their own."""
