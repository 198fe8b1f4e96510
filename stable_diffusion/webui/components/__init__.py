"""What the pages share: the form, the settings beside it, and the panel that shows a job."""
