"""Write a base's model card: python scripts/base_card.py BASE_FOLDER STUDY_RUN TRAINING_JSON PRETRAIN_YAML [REMARKS].

STUDY_RUN is a study of the base on its own world; of a language model, the run's folder `llm`.
"""

import sys
from pathlib import Path

from diffusion_sft.commands import PretrainCommandConfig
from diffusion_sft.files import write_text
from diffusion_sft.pretrain.card import write_card
from diffusion_sft.pretrain.language_card import write_language_card
from diffusion_sft.settings import load_settings

base, run, training, recipe = (Path(argument) for argument in sys.argv[1:5])
config, remarks = load_settings(PretrainCommandConfig, recipe), " ".join(sys.argv[5:])
if (base / "model_index.json").is_file():
    card = write_card(base, run, training, config, remarks)
else:
    card = write_language_card(base, run, training, config.llm, remarks)
write_text(base / "README.md", card)
