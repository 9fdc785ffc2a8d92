"""Write a base's model card: python scripts/base_card.py BASE_FOLDER STUDY_RUN TRAINING_JSON PRETRAIN_YAML [REMARKS]."""

import sys
from pathlib import Path

from diffusion_sft.commands import PretrainCommandConfig
from diffusion_sft.files import write_text
from diffusion_sft.pretrain.card import write_card
from diffusion_sft.settings import load_settings

base, run, training, recipe = (Path(argument) for argument in sys.argv[1:5])
config = load_settings(PretrainCommandConfig, recipe)
write_text(base / "README.md", write_card(base, run, training, config, " ".join(sys.argv[5:])))
