"""Exports and checkpoints: torn files, pickles, code, other models' files, manifests that were edited."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from deft_hf.data.labels import LabelSpace
from deft_hf.models.opening import open_model
from deft_hf.models.pretrained import open_pretrained
from deft_hf.models.processor import open_processor
from deft_hf.publish.export import export_generalized
from deft_hf.runs.facts import read_facts
from deft_hf.runs.segmenter import Segmenter
from deft_hf.trainer.components import load_component, model_folder
from deft_hf.utils.integrity import last_good_checkpoint, write_manifest
from tests import tiny
