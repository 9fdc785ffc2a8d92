"""The model card of a pretrained base: its recipe, and what a study of it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..files import read_json, read_table
from ..settings import settings_yaml
from .run import PretrainConfig

NUM_GROUPS = 10


def quality_by_exposure(run: Path) -> pd.DataFrame:
    """One row per decile of exposure among seen names, then one per kind of concept without exposure.

    Args:
        run: a study of the base on its own world, evaluated (the tables of `probe/`, `buckets/` and `evaluate/`).

    Returns:
        Columns group, exposures, concepts, images, read_right (share of generated images in which every attribute is
        read rightly), gain_nats and opinion_nats (means over concepts of held-out means).
    """
    concepts = read_table(run / "buckets" / "concepts.parquet")
    accuracy = read_table(run / "evaluate" / "concept_accuracy.parquet")
    accuracy = accuracy[accuracy["model"] == "base"].set_index("concept")
    concepts = concepts.join(accuracy[["num_images", "num_correct"]], on="concept")
    seen = concepts[concepts["kind"] == "seen"].sort_values("exposure", ascending=False)
    groups = [
        (f"decile {i + 1}", seen.iloc[rows]) for i, rows in enumerate(np.array_split(range(len(seen)), NUM_GROUPS))
    ]
    groups += [(kind, concepts[concepts["kind"] == kind]) for kind in ("unbound", "novel", "described")]
    return pd.DataFrame([_row(name, rows) for name, rows in groups if len(rows)])


def _row(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    exposures = rows["exposure"].dropna()
    return {
        "group": name,
        "exposures": f"{exposures.min()}–{exposures.max()}" if len(exposures) and exposures.max() > 0 else "–",
        "concepts": len(rows),
        "images": int(rows["num_images"].sum()),
        "read_right": rows["num_correct"].sum() / rows["num_images"].sum(),
        "gain_nats": rows["gain_nats"].mean(),
        "opinion_nats": rows["opinion_nats"].mean(),
    }


def write_card(folder: Path, run: Path, training: Path, config: PretrainConfig, remarks: str) -> str:
    """The card's Markdown text; `training` is the `training.json` of the pretraining, `remarks` free text."""
    table, study, trained = quality_by_exposure(run), read_json(run / "study.json"), read_json(training)
    drawing = study["settings"]["evaluate"]
    lines = [
        "---\nlicense: apache-2.0\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---",
        f"# {folder.name}: a small Stable Diffusion that knows what it has seen\n",
        "A complete `StableDiffusionPipeline` (64x64 pixels, 8x8x8 latents) trained from nothing on the embedded world of",
        "`diffusion_sft`: invented names bound to looks (shape x colour x pattern), each read a known number of times.",
        "It exists to give studies of what a diffusion model knows a ground truth.\n",
        "## What it knows\n",
        f"Generated with {drawing['num_inference_steps']} DDIM steps at guidance {drawing['guidance_scale']:g}; *read right*:",
        "the readout finds shape, colour and pattern all right. Chance is below 0.4 %. Gain and opinion: nats, on held-out",
        "renderings (design: i_s and i_o); the opinion of names never seen is how far such a name moves the prediction.\n",
        _markdown(table),
        "\nReadout on held-out renderings: "
        + ", ".join(f"{name} {share:.1%}" for name, share in trained["readout_heldout_accuracy"].items())
        + ".\n",
        "## Recipe\n",
        f"Final training loss {trained['denoiser_log'][-1]['loss']:.4f} (mean squared error of the noise). {remarks}\n",
        f"```yaml\n{settings_yaml(config).strip()}\n```",
    ]
    return "\n".join(lines) + "\n"


def _markdown(table: pd.DataFrame) -> str:
    rows = [["exposure group", "exposures", "concepts", "images", "read right", "gain", "opinion"]]
    rows.append(["---"] * 7)
    for row in table.to_dict("records"):
        shown = [row["group"], row["exposures"], row["concepts"], row["images"], f"{row['read_right']:.1%}"]
        rows.append([*map(str, shown), f"{row['gain_nats']:+.1f}", f"{row['opinion_nats']:.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
