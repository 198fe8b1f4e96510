"""The entry script of the page's server.

It must not be next to the folder `pages`: until a script has called st.navigation, Streamlit would run
the pages there on their own, and whoever opened one of them first would see an error.
"""
