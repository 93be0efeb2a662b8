"""Make a checkpoint folder of a plain backbone under an UperNet head that is still to be drawn.

    python benchmarks/studies/backbone_under_upernet.py BACKBONE OUT --layers 3 6 9 12 --hidden 64

The folder holds the backbone's weights alone; `model.checkpoint: OUT` in a recipe draws the head by the run's seed.
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, UperNetConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", type=Path, help="folder of a backbone, such as a Dinov2Model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, nargs=4, default=[3, 6, 9, 12], help="whose features the head reads")
    parser.add_argument("--hidden", type=int, default=64, help="channels of the head")
    options = parser.parse_args()

    backbone = AutoConfig.from_pretrained(options.backbone, out_indices=options.layers)
    config = UperNetConfig(backbone_config=backbone, hidden_size=options.hidden, use_auxiliary_head=False)
    config.architectures = ["UperNetForSemanticSegmentation"]
    options.out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(options.out)
    weights = load_file(options.backbone / "model.safetensors")
    save_file(
        {f"backbone.{name}": tensor.float() for name, tensor in weights.items()},
        options.out / "model.safetensors",
        metadata={"format": "pt"},
    )


if __name__ == "__main__":
    main()
