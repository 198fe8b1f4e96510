"""The catalogue of models behind the dropdown: the embedded one, files and folders on this machine, and the hub's."""

from stable_diffusion.catalogue import DEFAULT, Defaults, Model, all, find, from_file, from_folder, local, model_folders

__all__ = ["DEFAULT", "Defaults", "Model", "all", "find", "from_file", "from_folder", "local", "model_folders"]
