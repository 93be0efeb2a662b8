"""The errors that a caller may want to catch."""

from deft_hf.utils.errors import TrainingDiverged, UnreadableFile, UserError

__all__ = ["TrainingDiverged", "UnreadableFile", "UserError"]
