"""Lessons: diffusion from the ground up, computed live. No Streamlit: the page draws what a lesson shows."""
