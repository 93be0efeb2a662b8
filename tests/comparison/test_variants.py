from dataclasses import replace
from difflib import get_close_matches

import pytest

from deft_hf.comparison.variants import parse_variants
from deft_hf.methods import variants as known_variants
from deft_hf.utils.errors import UserError


def test_names_come_in_the_order_asked_for():
    found = parse_variants("deft, joint,lp_ft,")
    assert list(found) == ["deft", "joint", "lp_ft"]
    assert all(found[name].settings == known_variants()[name].settings for name in found)
    assert all(found[name].note == known_variants()[name].note for name in found)


def test_settings_of_ones_own_lie_over_those_of_the_variant():
    spec = "deft_slow:method.ema_decay_steps=40000:data.recolor=true:training.optim=sgd"
    found = parse_variants(f"deft_slow,{spec}")
    assert list(found) == ["deft_slow", spec]
    own = {"method.ema_decay_steps": 40_000, "data.recolor": True, "training.optim": "sgd"}
    assert found[spec].settings == {**known_variants()["deft_slow"].settings, **own}
    assert found["deft_slow"].settings["method.ema_decay_steps"] == 20_000
    assert found[spec].note.endswith("method.ema_decay_steps=40000, data.recolor=True, training.optim=sgd")
    assert found[spec].reading == known_variants()["deft_slow"].reading


@pytest.mark.parametrize(
    "text, message",
    [
        ("joint,lp-ft", "found 'lp-ft'; did you mean lp_ft?"),
        ("zzz", "found 'zzz'; expected one of joint, joint_recolor"),
        ("joint,deft,joint", "found joint twice"),
        ("joint:method.swa_start", "found 'method.swa_start', expected key=value"),
        ("joint:=3", "found '=3', expected key=value"),
        ("joint:", "found '', expected key=value"),
        ("joint:model.config={", "found 'model.config={', whose value is no YAML"),
        ("joint:training.seed=2024-13-45", "found 'training.seed=2024-13-45', whose value is no YAML"),
        (" , ", "found none, expected names"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, message):
    with pytest.raises(UserError) as error:
        parse_variants(text)
    assert str(error.value).startswith("methods: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_that_another_is_read_from_is_alone_without_the_average():
    assert known_variants()["joint"].own == {"method.name": "joint"}
    assert known_variants()["joint_recolor"].own == {"method.name": "joint", "data.recolor": True}
    longer = replace(known_variants()["lp_ft_equal"], own={"method.name": "lp_ft", "training.max_steps": 7})
    assert longer.settings == {**known_variants()["lp_ft"].settings, "training.max_steps": 7}
    # The average of these two is part of what they are.
    assert known_variants()["joint_ema"].own == known_variants()["joint_ema"].settings
    assert known_variants()["deft_usual"].own == known_variants()["deft"].settings


def test_every_method_is_tried_at_three_values_and_one_of_them_is_its_default_or_the_middle():
    methods = {name for name, variant in known_variants().items() if variant.tries}
    # All but the ablations, which are another with one thing changed, and the controls of equal compute.
    of_their_own = {"deft_split", "deft_spd", "deft_l2_sp", "deft_lora", "deft_lora_smallest"}
    trained = {name for name, variant in known_variants().items() if variant.mix is None}
    others = {name for name in trained if not name.startswith(("deft_", "ldt_"))} | of_their_own
    assert methods == others - {
        "joint_recolor", "lp_ft_recolor", "joint_equal", "lp_ft_equal",
    }  # fmt: skip
    for name in methods:
        key, values = known_variants()[name].tries(1e-3, 400)
        assert len(set(values)) == 3 and values == sorted(values), name
        default = known_variants()[name].settings.get(key)
        assert default is None or default in values, name
    assert known_variants()["joint"].tries(1e-3, 400) == ("method.encoder_learning_rate", [1e-4, 3e-4, 1e-3])
    assert known_variants()["lp_ft"].tries(1e-3, 400) == ("method.decoder_warmup_steps", [20, 40, 80])


def test_whatever_is_no_method_of_its_own_is_like_one_and_changes_something():
    assert {name for name, variant in known_variants().items() if variant.like} == {
        name for name, variant in known_variants().items() if not variant.tries
    }
    for name, variant in known_variants().items():
        if variant.like is not None:
            model = known_variants()[variant.like]
            assert name.startswith(f"{variant.like}_") and model.tries and model.like is None
            assert model.settings.items() <= variant.settings.items(), name
            other = (variant.settings, variant.reading, variant.compute_of, variant.mix)
            assert other != (model.settings, model.reading, model.compute_of, None), name


def test_names_can_be_told_apart():
    assert all(get_close_matches(name, known_variants(), n=1) == [name] for name in known_variants())
    assert not [name for name in known_variants() if set(name) & set(",:= ")]
    assert len({variant.note for variant in known_variants().values()}) == len(known_variants())
