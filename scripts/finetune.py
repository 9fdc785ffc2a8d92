"""Fine-tune: `python scripts/finetune.py configs/finetune.yaml key=value ...`, also under `accelerate launch`."""

import sys

from diffusion_sft.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
