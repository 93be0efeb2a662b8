"""The files that a run and its checkpoints write, in one table: what they are called, and which are published."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

# The model, as `from_pretrained` reads it.
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# Beside it in a checkpoint.
USUAL = "usual.safetensors"
GENERALIZED = "generalized.safetensors"
INITIAL = "initial.safetensors"
INGREDIENTS = "ingredients.safetensors"
STATE = "deft_state.json"
MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
# Beside it in the folder of a run.
RECIPE = "recipe.yaml"
EARLIER_RECIPES = "recipe.*.yaml"
DATA_LISTS = "data.json"
CARD = "README.md"
PAGE = "report.html"
METRICS = "results/metrics.json"
HISTORY = "results/history.json"
CONFUSIONS = "results/confusions.json"
DISTANCES = "results/layer_distances.json"
TABLE = "results/table.md"
PLACES = "results/places.json"
LOCK = ".lock"
# What an output folder belongs to, and the files that were written there.
MARKER = ".deft_hf.jsonl"
# In a run of a comparison.
COUNTS = "results/image_counts.npz"
FAILURE = "failure.json"
LOG = "log.txt"


class RunFile(NamedTuple):
    """A file of a run or a checkpoint, or a kind of them.

    Attributes:
        pattern (`str`):
            Its path in the folder; `*` stands for anything, `/` too, as in the patterns of the Hub.
        published (`bool`):
            Whether it goes to the Hub with the model.
    """

    pattern: str
    published: bool


# A file that is written and has no row here fails a test. A row that is not published wins over one that is.
FILES = (
    RunFile(CONFIG, True),
    RunFile("model*.safetensors", True),
    RunFile("model.safetensors.index.json", True),
    RunFile("model.onnx", True),
    RunFile("preprocessor_config.json", True),
    RunFile("modeling_*.py", True),  # of a model class that transformers does not have
    RunFile("tokenizer*.json", True),  # of the tasks of OneFormer
    RunFile(CARD, True),
    RunFile(PAGE, True),
    RunFile(RECIPE, True),
    RunFile(EARLIER_RECIPES, True),
    RunFile("results/*", True),
    RunFile("figures/*.png", True),
    RunFile("checkpoint-*", False),
    RunFile("baselines/*", False),
    RunFile("to_label/*", False),  # it names folders of the machine
    RunFile(DATA_LISTS, False),  # the metrics have it
    RunFile(".*", False),  # locks, and folders that are being written
    # What training resumes from, partly pickled: optimizer, scheduler, scaler and random states, arguments.
    RunFile("*.pt", False),
    RunFile("*.pth", False),
    RunFile("*.bin", False),
    RunFile("*.pkl", False),
    RunFile("usual*.safetensors", False),
    RunFile("generalized*.safetensors", False),
    RunFile("initial*.safetensors", False),
    RunFile(STATE, False),
    RunFile(MANIFEST, False),
    RunFile(TRAINER_STATE, False),
    RunFile("*tfevents*", False),  # TensorBoard's, which have the name of the machine
    RunFile(FAILURE, False),
    RunFile(LOG, False),  # it names folders of the machine
)

NOT_PUBLISHED = tuple(file.pattern for file in FILES if not file.published)


def is_published(path: str) -> bool | None:
    """Whether a file of a run or a checkpoint goes to the Hub with the model.

    Args:
        path (`str`):
            Relative to the folder, with `/`.

    Returns:
        `bool`: whether it does; `None` for a file that deft_hf does not write.
    """
    rows = [file for file in FILES if fnmatchcase(path, file.pattern)]
    return all(file.published for file in rows) if rows else None
