"""What the functions under the commands return, as notebooks show it."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import deft_hf
from deft_hf.data.domains import Domain
from deft_hf.runs.evaluate import score
from deft_hf.runs.export import Exported
from deft_hf.runs.predict import predict
from deft_hf.runs.segmenter import Segmenter
from deft_hf.utils.errors import UserError
from deft_hf.utils.result import Result
from tests.comparison.test_statistics import compared, random_runs
from tests.test_predict import exported


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "final"
    exported(folder)
    return folder


def test_scores_are_a_table_of_domains_and_classes(model):
    clear, night = (Domain.from_streets(look, count=2, size=(32, 48)) for look in ("clear", "night"))
    found = score(Segmenter.open(str(model), size=(32, 48)), [clear], [night])
    table = found.to_pandas()
    assert list(table.index) == ["clear", "night"] and list(table["role"]) == ["validation", "unseen"]
    for domain, scores in found.scores.items():
        assert table.loc[domain, "mean_iou"] == pytest.approx(scores.mean_iou, nan_ok=True)
        for name, value in zip(clear.labels.names, scores.iou, strict=True):
            assert table.loc[domain, f"iou {name}"] == pytest.approx(value, nan_ok=True)
    assert found.pictures() == []


def test_predictions_are_a_table_of_shares_with_overlays(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(
            tmp_path / f"in/{name}.png"
        )
    found = predict(model, tmp_path / "in", tmp_path / "out", progress=False)
    table = found.to_pandas()
    assert [path.rsplit("/")[-1] for path in table.index] == ["a.png", "b.png"]
    assert list(table["height"]) == [20, 20]
    shares = table[[name for name in table if name.startswith("share ")]]
    assert shares.shape[1] == len(found.classes) and shares.sum(axis=1).tolist() == pytest.approx([1, 1])
    assert [path.name for path in found.pictures()] == ["a.png", "b.png"]
    page = found._repr_html_()
    assert page.count("<img") == 2 and "data:image/png;base64," in page and "share" in page
    found.show()
    printed = capsys.readouterr().out
    assert str(found.pictures()[0]) in printed and "height" in printed
    found.pictures()[0].unlink()
    assert found._repr_html_().count("<img") == 1


def test_a_comparison_is_a_row_for_each_method_seed_and_domain(tmp_path):
    runs = random_runs(methods=("joint", "deft"), seeds=(1, 2), domains=("day", "rain", "fog"))
    table = compared(runs, folder=tmp_path).to_pandas()
    assert table.index.names == ["method", "seed", "domain"] and len(table) == 12
    scores = runs["deft"][2].scores["fog"]
    assert table.loc[("deft", 2, "fog"), "mean_iou"] == pytest.approx(scores["mean_iou"])
    assert table.loc[("deft", 2, "fog"), "role"] == "unseen" and table.loc[("joint", 1, "day"), "role"] == "validation"


def test_an_export_is_a_row():
    checked = {"max_difference": 1e-6, "logits_shape": [1, 3, 8, 8], "seconds": 2.0}
    table = Exported("small", "big", "usual", None, "float32", ["config.json"], checked).to_pandas()
    assert table.loc["small", "max_difference"] == 1e-6 and table.loc["small", "logits_shape"] == "[1, 3, 8, 8]"


def test_names_are_escaped_in_a_notebook():
    class Named(Result):
        def to_pandas(self):
            import pandas

            return pandas.DataFrame({"<img onerror=alert(1)>": [math.nan]})

    page = Named()._repr_html_()
    assert "<img" not in page and "&lt;img" in page and ">-<" in page


def test_a_notebook_shows_what_a_terminal_prints(monkeypatch, capsys, model, tmp_path):
    shown = []
    notebook = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    display = SimpleNamespace(HTML=lambda text: text, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    checked = {"max_difference": 1e-6, "logits_shape": [1, 3, 8, 8], "seconds": 2.0}
    Exported("small", "big", "usual", None, "float32", ["config.json"], checked).show()
    assert len(shown) == 1 and "<table" in shown[0] and not capsys.readouterr().out


def test_functions_have_the_names_of_their_commands(model, tmp_path):
    assert {"evaluate", "predict", "compare", "export"} <= set(deft_hf.__all__)
    import deft_hf.export as command  # stands in the function's place from now on, and can be called as it

    assert callable(command) and callable(command.main)
    with pytest.raises(UserError, match="nowhere"):
        command(tmp_path / "nowhere", tmp_path / "out")
