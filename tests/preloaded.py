"""What the process has imported and drawn from which those of the tests are forked."""

import pytest

import deft_hf.comparison.worker  # noqa: F401 (as `compare` does)
from tests import drawn, processes  # noqa: F401 (whose settings the processes of `compare` have too)

drawn.draw_usual()
drawn.remember(pytest.MonkeyPatch())
