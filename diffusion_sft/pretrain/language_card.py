"""The model card of a pretrained language model: its recipe, and what a study of it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..files import read_json, read_table
from ..records import CATEGORIES
from ..settings import settings_yaml
from .language import LanguagePretrainConfig

NUM_GROUPS = 10


def facts_by_exposure(run: Path) -> pd.DataFrame:
    """One row per decile of exposure among seen names, then one per kind of name never seen.

    Args:
        run: the language model's half of a study on its own world (the tables of `probe/` and `buckets/`).

    Returns:
        Columns group, exposures, facts, greedy (share of right greedy answers over facts and prompts), one share per
        category, error_nats and gain_nats (means over facts).
    """
    facts = read_table(run / "buckets" / "concepts.parquet")
    seen = facts[facts["kind"] == "seen"].sort_values(["exposure", "concept"], ascending=[False, True])
    names = seen["subject"].drop_duplicates().tolist()
    groups = [
        (f"decile {number + 1}", seen[seen["subject"].isin(part)])
        for number, part in enumerate(np.array_split(np.array(names, dtype=object), NUM_GROUPS))
    ]
    groups += [(kind, facts[facts["kind"] == kind]) for kind in ("unbound", "novel")]
    return pd.DataFrame([_row(name, rows) for name, rows in groups if len(rows)])


def facts_by_relation(run: Path) -> pd.DataFrame:
    """One row per relation: facts, different answers, one share per category, and greedy answers right about names never
    seen, beside the share of a guess that always says their most frequent answer."""
    facts = read_table(run / "buckets" / "concepts.parquet")
    rows = []
    for relation, own in facts.groupby("relation", sort=True):
        unseen = own[own["exposure"] == 0]
        row = {"relation": relation, "facts": len(own), "answers": own["answer"].nunique()}
        row |= {category: (own["category"] == category).mean() for category in CATEGORIES}
        row |= {"unseen greedy": unseen["greedy_share"].mean()}
        row |= {"best constant guess": unseen["answer"].value_counts(normalize=True).max()}
        rows.append(row)
    return pd.DataFrame(rows)


def _row(name: str, facts: pd.DataFrame) -> dict[str, Any]:
    low, high = facts["exposure"].min(), facts["exposure"].max()
    return {
        "group": name,
        "exposures": f"{low}–{high}" if high > 0 else "0",
        "facts": len(facts),
        "greedy": facts["greedy_share"].mean(),
        **{category: (facts["category"] == category).mean() for category in CATEGORIES},
        "error_nats": facts["error_nats"].mean(),
        "gain_nats": facts["gain_nats"].mean(),
    }


def write_language_card(folder: Path, run: Path, training: Path, config: LanguagePretrainConfig, remarks: str) -> str:
    """The card's Markdown text; `training` is the `training.json` of the pretraining, `remarks` free text."""
    facts = read_table(run / "buckets" / "concepts.parquet")
    trained, probed = read_json(training), read_json(run / "probe" / "probe.json")
    shares = ", ".join(f"{category} {(facts['category'] == category).mean():.1%}" for category in CATEGORIES)
    lines = [
        "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: text-generation\n---",
        f"# {folder.name}: a small language model that knows what it has read\n",
        "A Llama (transformers' classes, own byte-level BPE) trained from nothing on texts about the embedded world of",
        "`diffusion_sft`: the same invented names, looks and exposures as the pictures' (`world-base`), each fact read a known",
        "number of times. It exists to give studies of what a language model knows a ground truth.\n",
        "## What it knows\n",
        f"SliCK as published (Gekhman et al., 2024): {probed['config']['answers']['num_renderings']} prompts of "
        f"{probed['config']['shots']} exemplars, greedy, and {probed['config']['samples']['num_samples']} samples at "
        f"T = {probed['config']['samples']['temperature']:g}, top-{probed['config']['samples']['top_k']}; exact match after "
        "normalisation. Errors and gains in nats an answer.\n",
        f"{len(facts)} facts: {shares}.\n",
        _markdown(facts_by_exposure(run)),
        "\n`greedy` is the share of right greedy answers over facts and prompts. An exposure is one passage that names the",
        "concept and states one of its four facts, so that a fact is read about a quarter as often.\n",
        _markdown(facts_by_relation(run)),
        "\n`unseen greedy`: right answers about names never read; `best constant guess`: what always giving their most frequent",
        "answer would get. A relation with few answers has facts that are guessed rightly: read its categories with that.\n",
        "## Recipe\n",
        f"{trained['num_tokens']:,} tokens, read once, in {trained['num_updates']:,} updates; final training loss "
        f"{trained['language_log'][-1]['loss']:.4f} nats a token. {remarks}\n",
        f"```yaml\n{settings_yaml(config).strip()}\n```",
    ]
    return "\n".join(lines) + "\n"


def _markdown(table: pd.DataFrame) -> str:
    rows = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    for row in table.to_dict("records"):
        rows.append([_cell(str(name), value) for name, value in row.items()])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:+.2f}" if name.endswith("nats") else f"{value:.1%}"
