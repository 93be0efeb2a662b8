"""Label exports of annotation tools, read as they are: nothing is converted on disk.

Each format is a module and a row of `FORMATS`. A mask is drawn from the shapes when it is loaded.
"""

from deft_hf.data.annotations.export import Found as Found
from deft_hf.data.annotations.formats import FORMATS as FORMATS
from deft_hf.data.annotations.formats import detect as detect

__all__ = ["FORMATS", "Found", "detect"]
