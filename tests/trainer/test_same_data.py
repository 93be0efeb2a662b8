"""A checkpoint of other training data is not resumed from without a word."""

import pytest
from torch.utils.data import ConcatDataset, Subset

from deft_hf.data.domains import Domain
from deft_hf.data.sampling import TrainingSet, training_data
from deft_hf.data.transforms import TrainTransform
from deft_hf.utils.errors import UserError
from tests.trainer.test_trainer import Drawn, Stream, trainer


def drawn(seed=0, count=3, look="clear"):
    return TrainingSet(
        [Domain.from_streets(look, count=count, seed=seed, size=(32, 32))], TrainTransform(crop=(32, 32))
    )


def test_other_images_under_the_same_ids_are_refused_and_told(tmp_path, caplog):
    settings = {"method": "joint", "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, train=drawn(), **settings).train()
    other = trainer(tmp_path, train=drawn(seed=1), **settings)
    with pytest.raises(
        UserError, match=r"made with train_dataset 3 items \(\w{12}\), this run has 3 items \(\w{12}\)"
    ):
        other.train(resume_from_checkpoint=True)
    other.train(resume_from_checkpoint=True, resume_anyway=True)
    assert "Resumed anyway: the checkpoint was made with train_dataset" in caplog.text
    assert trainer(tmp_path, train=drawn(), **settings).train(resume_from_checkpoint=True).global_step == 1


def test_what_can_be_told_of_a_data_set():
    same = {training_data(each) for each in (drawn(), drawn(), ConcatDataset([drawn()]))}
    others = [drawn(seed=1), drawn(count=4), drawn(look="night"), ConcatDataset([drawn(), drawn()])]
    others += [Subset(drawn(), [0, 1]), Drawn(3), Drawn(4)]
    assert len(same) == 1 and len({*same, *map(training_data, others)}) == 8
    assert training_data(Drawn(3)) == "3 items"
    assert training_data(Stream(2)) is training_data(None) is None
