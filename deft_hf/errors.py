"""The one exception that stands for a mistake of the user's."""


class UserError(ValueError):
    """A mistake that the user can mend: says the file or key, what was found, what was expected and what to do.

    Entry scripts print its message alone and exit with status 2; every other exception is a defect of deft_hf and
    keeps its traceback.
    """


class TrainingDiverged(UserError):
    """The training loss is no longer finite; the last checkpoint is kept."""
