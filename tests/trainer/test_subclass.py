"""Subclasses of `DeFTTrainer` that compute the loss themselves, as the documentation of `transformers` shows it."""

import pytest
import torch

from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, arguments, history


class ByAttribute(DeFTTrainer):
    def compute_loss(self, model, inputs, num_items_in_batch=None, return_outputs=False):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class ByKey(DeFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        return (loss, outputs) if return_outputs else loss


class OfTheParent(DeFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        assert loss is outputs.loss and set(outputs) <= {"loss", "encoder_loss", "decoder_loss", "joint_loss"}
        return (loss, outputs) if return_outputs else loss


class OfLogits(DeFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        return torch.nn.functional.cross_entropy(model(**inputs).logits, labels)


SETTINGS = {"max_steps": 2, "decoder_warmup_steps": 2, "gradient_accumulation_steps": 2, "distance_weight": 0.1}


def run(kind, folder, **settings):
    made = kind(
        model=tiny.build("segformer", **tiny.WITHOUT_DROPOUT["segformer"]),
        args=arguments(folder, **{**SETTINGS, **settings}),
        train_dataset=Drawn(8, side=32),
    )
    made.train()
    return made


@pytest.mark.parametrize("method", ["deft", "joint", "lp_ft"])
@pytest.mark.parametrize("kind", [ByAttribute, ByKey, OfTheParent])
def test_a_loss_of_the_models_is_the_trainers_in_every_stage(kind, method, tmp_path):
    settings = {"method": method} | ({"decoder_warmup_steps": None} if method == "joint" else {})
    own, other = (run(each, tmp_path / each.__name__, **settings) for each in (DeFTTrainer, kind))
    assert history(other, "loss") == history(own, "loss") and len(history(own, "loss")) in (2, 4)
    trained = own.pathways.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in other.pathways.state_dict().items())
    assert own.pathways.step is None


def test_a_loss_of_logits_is_one_message(tmp_path):
    with pytest.raises(UserError, match="found a batch without labels.*take `outputs.loss`"):
        run(OfLogits, tmp_path)


def test_outputs_are_those_of_transformers():
    from deft_hf.methods.core.pathways import DualPathway
    from deft_hf.models.families import resolve_family

    model = tiny.build("segformer")
    pathways = DualPathway(model, resolve_family(model)).train()
    for stage, terms in (("warmup", {"decoder"}), ("decoupled", {"encoder", "decoder"}), ("joint", {"joint"})):
        pathways.enter(stage)
        outputs = pathways(**tiny.batch())
        assert outputs.loss is outputs["loss"] is outputs[0]
        assert set(outputs) == {"loss", *(f"{term}_loss" for term in terms)}
        torch.testing.assert_close(outputs.loss.detach(), sum(outputs[f"{term}_loss"] for term in terms))
