"""What can go wrong, as a tree that a caller can catch.

Every message quotes the value that was refused and says how to mend it, so that a caller may show it as it stands.
"""


class StableDiffusionError(Exception):
    """The root: anything that this package refuses or cannot do."""


class BackendError(StableDiffusionError, ImportError):
    """MLX cannot be imported here, or two of its libraries lie in one another's way."""


class InputError(StableDiffusionError, ValueError):
    """An argument of a call is out of range, of the wrong type, or does not go with the others."""


class SamplerError(InputError):
    """No sampler of this name, or an option that the named sampler does not have."""


class PictureError(InputError):
    """A file or array that is no picture, or one that cannot be used."""


class CheckpointError(StableDiffusionError):
    """A checkpoint cannot be loaded. The classes below say why."""


class CheckpointNotFoundError(CheckpointError):
    """Nothing of this name: no embedded model, no folder, no file, not in the hub or not downloaded yet."""


class UnsupportedCheckpointError(CheckpointError):
    """The checkpoint is of another architecture, or its configuration asks for what is not built here."""


class ConfigError(CheckpointError):
    """A configuration file is missing, is not JSON, or holds a value that makes no sense."""


class WeightsError(CheckpointError):
    """A weights file is cut short, corrupt, or does not hold the tensors that its configuration calls for."""


class TokenizerError(CheckpointError):
    """The tokenizer's files are missing or do not fit together."""


class DownloadError(CheckpointError):
    """The hub could not be reached, or refused."""
