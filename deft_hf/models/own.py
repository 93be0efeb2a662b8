"""Model classes that transformers does not have, made known to its Auto classes.

They are saved with their code (`auto_map` in `config.json`), which others run with `trust_remote_code=True`. Where
this module was imported, the Auto classes open such a folder with the classes of this package, and none of its code.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForSemanticSegmentation

from deft_hf.models.modeling_deeplabv3plus import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation

__all__ = ["OWN", "DeepLabV3PlusConfig", "DeepLabV3PlusForSemanticSegmentation"]

OWN = (DeepLabV3PlusForSemanticSegmentation,)

for _model in OWN:
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModelForSemanticSegmentation.register(_model.config_class, _model, exist_ok=True)
    _model.config_class.register_for_auto_class("AutoConfig")
    _model.register_for_auto_class("AutoModelForSemanticSegmentation")
