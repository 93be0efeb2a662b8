"""Settings that must be in place before any test module imports the stack."""

import gc
import os
import tempfile
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_ASSETS_CACHE"] = os.path.join(tempfile.gettempdir(), "deft_hf_tests")
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started too

import datasets  # noqa: E402
import huggingface_hub  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from transformers.utils import hub as transformers_hub  # noqa: E402

from tests import drawn, processes  # noqa: E402
from tests.hub import TOKEN, FakeHub  # noqa: E402

torch.set_num_threads(1)
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5  # seconds that a loader waits for a process that does not end


@pytest.fixture(scope="module", autouse=True)
def settled():
    """What is imported by now stays: the search for garbage that every training starts with leaves it out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def streets_drawn_once(monkeypatch):
    drawn.remember(monkeypatch)


@pytest.fixture
def unverified(request, monkeypatch):
    """The end of a run as `processes.shorten` leaves it; but for tests marked `verified`."""
    if request.node.get_closest_marker("verified") is None:
        processes.shorten(monkeypatch)


@pytest.fixture(autouse=True)
def forked_check(monkeypatch):
    """Exports are loaded again in a fork, without the seconds that a new interpreter takes to import transformers."""
    monkeypatch.setattr("deft_hf.publish.export.subprocess", SimpleNamespace(run=processes.run_python))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of its own, which the client of this process talks to as ana."""
    server = FakeHub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(transformers_hub, "_hf_api", None)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The client would try again for 23 seconds.
    monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=lambda seconds: None))
    yield server
    server.close()
