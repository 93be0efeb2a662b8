"""What servers are given, read back by the benchmark's own scripts."""

from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import LABELS
from deft_hf.data.servers import SERVERS, check_names, id_table, server_of, write_archive
from deft_hf.data.spaces import CITYSCAPES, SYNTHIA16
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.utils.errors import UserError
from tests.scoring.test_confusion import drawn_maps

FRAMES = [f"frankfurt/frankfurt_000000_{number:06d}" for number in range(3)]


def odd_pairs(count):
    """Of odd sizes, one pixel wide at times; few classes or many, all of it ignored at times."""
    rng = np.random.default_rng(5)
    pairs = []
    for index in range(count):
        size = tuple(2 * rng.integers(0, 12, 2) + 1)
        classes = rng.choice(18, rng.integers(1, 18), replace=False)  # the last occurs nowhere
        pairs += drawn_maps(index, classes, 1, size)
        if index % 40 == 0:
            pairs[-1][1][:] = 255
    return pairs


def written(folder, keys, predictions, server, classes=CITYSCAPES.names):
    """The archive, unpacked, with the names in it."""
    files = {}
    for index, (key, ids) in enumerate(zip(keys, predictions, strict=True)):
        files[key] = folder / f"{index}.png"
        Image.fromarray(ids).save(files[key])
    write_archive(folder / "it.zip", SERVERS[server], classes, files)
    with ZipFile(folder / "it.zip") as archive:
        archive.extractall(folder / "unpacked")
        return archive.namelist()


def test_cityscapes_own_evaluation_finds_and_scores_the_archive(tmp_path):
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    pairs = odd_pairs(200)
    frames = [f"frankfurt/frankfurt_000000_{number:06d}" for number in range(len(pairs))]
    names = written(tmp_path, frames, [prediction for prediction, _ in pairs], "cityscapes")
    assert names == [f"{key.split('/')[1]}_leftImg8bit.png" for key in frames]
    args = SimpleNamespace(**vars(official.args))
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
    args.predictionPath, args.predictionWalk = str(tmp_path / "unpacked"), None
    matrix, truths = ConfusionMatrix(19), []
    for key, (prediction, truth) in zip(frames, pairs, strict=True):
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
        raw = np.zeros_like(truth)  # unlabeled
        for train in range(19):
            raw[truth == train] = labels.trainId2label[train].id
        truths.append(str(tmp_path / f"{key.split('/')[1]}_gtFine_labelIds.png"))
        Image.fromarray(raw).save(truths[-1])
    found = official.evaluateImgLists([official.getPrediction(args, truth) for truth in truths], truths, args)
    scores = matrix.compute()
    assert scores.mean_iou == pytest.approx(found["averageScoreClasses"], abs=1e-6)
    iou = [found["classScores"][labels.trainId2label[train].name] for train in range(19)]
    np.testing.assert_allclose(scores.iou, iou, atol=1e-6)


def test_acdc_takes_train_ids_in_their_folder(tmp_path):
    ids = np.arange(19, dtype=np.uint8)[None]
    keys = ["night/GOPR0351/GOPR0351_frame_000159", "rain/GP010400_frame_000001_rgb_anon"]
    names = written(tmp_path, keys, [ids, ids[:, ::-1]], "acdc")
    assert names == [
        "labelTrainIds/GOPR0351_frame_000159_rgb_anon.png",
        "labelTrainIds/GP010400_frame_000001_rgb_anon.png",
    ]
    for name, expected in zip(names, (ids, ids[:, ::-1]), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "unpacked" / name)), expected)


def test_classes_become_the_servers_own_ids():
    own = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert id_table(SERVERS["cityscapes"], CITYSCAPES.names).tolist() == own
    assert id_table(SERVERS["wilddash"], CITYSCAPES.names).tolist() == own  # WildDash's policy keeps them
    assert id_table(SERVERS["acdc"], SYNTHIA16.names).tolist() == [*range(9), *range(10, 14), 15, 17, 18]
    more = dict(zip(LABELS["wilddash26"]["wilddash26"].names, id_table(
        SERVERS["wilddash"], LABELS["wilddash26"]["wilddash26"].names
    ).tolist(), strict=True))  # fmt: skip
    assert (more["egovehicle"], more["guardrail"], more["pickup"], more["van"], more["roadmarking"]) == (
        1, 14, 34, 35, 38
    )  # fmt: skip


@pytest.mark.parametrize("server", SERVERS)
def test_what_a_server_gets_is_read_back_as_it_was(server):
    """The way to the server's ids and the layout's way back are inverse."""
    table = id_table(SERVERS[server], CITYSCAPES.names)
    held = SERVERS[server].held or "cityscapes_train_ids"
    back: LabelSpace = LABELS[held]["cityscapes"]
    picture = Image.fromarray(np.kron(table[None], np.ones((2, 1), np.uint8)).astype(np.uint8))
    assert back.encode(picture, "x")[0].tolist() == list(range(19))


def test_mistakes():
    with pytest.raises(UserError, match="server: found kitti, expected one of cityscapes, acdc, wilddash"):
        server_of("kitti")
    with pytest.raises(UserError, match="the class boat, which Cityscapes's server does not know"):
        id_table(SERVERS["cityscapes"], ["road", "boat"])
    with pytest.raises(UserError, match="00001: is not called as the images of Cityscapes are"):
        check_names(SERVERS["cityscapes"], ["00001"])
    with pytest.raises(UserError, match="a/aa0001_000000 and b/aa0001_000000 would both be aa0001_000000.png"):
        check_names(SERVERS["wilddash"], ["a/aa0001_000000", "b/aa0001_000000"])


def test_the_same_predictions_are_the_same_file(tmp_path):
    ids = np.zeros((2, 3), np.uint8)
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, FRAMES[:1], [ids], "cityscapes")
        contents.append((tmp_path / name / "it.zip").read_bytes())
    assert contents[0] == contents[1]
