"""The table for a paper or a README: Markdown and LaTeX with one column for each learner, and the published beside them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from ..records import CATEGORIES
from .agreement import series_name
from .metrics import METRICS
from .rows import MISSING, SOURCES, learner_place

ABSENT = "–"
MARKDOWN = """\
# {{ title }}

{% for sentence in sentences %}
{{ sentence|md }}

{% endfor %}
{% for family, header, rows in blocks %}
## {{ family|md }}

| {{ header|map("md")|join(" | ") }} |
|{{ " --- |" * header|length }}
{% for row in rows %}
| {{ row|map("md")|join(" | ") }} |
{% endfor %}

{% endfor %}
{{ legend|md }}
{% if missing %}

## Missing

{% for line in missing %}
- {{ line|md }}
{% endfor %}
{% endif %}
"""
LATEX = """\
% needs \\usepackage{booktabs,longtable} and a page as wide as A4 landscape; foreign names beyond Latin need XeLaTeX or LuaLaTeX
\\begingroup\\scriptsize\\setlength{\\tabcolsep}{3pt}
{{ body }}\\noindent {{ legend }}\\par\\endgroup
"""
LEGEND = (
    "Value [95 % interval] (n). Shares and changes are in 0..1; n counts concepts, facts, examples or runs, as "
    "comparison.csv says. Agreement is of the first two columns: the sign of their trends over the categories (or of the "
    "number itself), with a star where both trends over concepts (or both numbers) are beyond zero, and Spearman's ρ over the "
    "categories with its exact p. Published figures have no intervals."
)
IN_MATHS = {"δ": r"$\delta$", "ρ": r"$\rho$", "²": r"$^2$", "–": "--", "−": "$-$", "×": r"$\times$"}
"""What a LaTeX font may lack, of the characters that the table itself uses."""


def grid(table: pd.DataFrame, agreement: pd.DataFrame) -> pd.DataFrame:
    """One row for each metric and category that any series has, as text: family, metric, category, a column for each
    learner and source, and how far the first two agree."""
    series = _series(table)
    first_two = series[:2]
    cells = {
        (str(row["metric"]), str(row["category"]), series_name(str(row["learner"]), str(row["source"]))): cell_text(
            row
        )
        for row in table[table["value"].notna()].to_dict("records")
    }
    agreed = _agreed(agreement, first_two)
    rows = []
    for metric, about in METRICS.items():
        there = [
            category for category in ("", *CATEGORIES) if any((metric, category, one) in cells for one in series)
        ]
        for place, category in enumerate(there):
            named = f"{about.name} ({about.unit})" if place == 0 else ""
            row = {"family": about.family, "metric": named, "category": category or "all"}
            row |= {one: cells.get((metric, category, one), ABSENT) for one in series}
            rows.append(row | {"agreement": agreed.get(metric, ABSENT) if place == 0 else ""})
    return pd.DataFrame(rows, columns=["family", "metric", "category", *series, "agreement"])


def _series(table: pd.DataFrame) -> list[str]:
    """Learners measured here, then external ones, then the published."""
    places = learner_place(table["learner"])
    found = table[["learner", "source"]].drop_duplicates()
    ordered = sorted(
        zip(found["source"], found["learner"], strict=True), key=lambda k: (SOURCES.index(k[0]), places[k[1]])
    )
    return [series_name(learner, source) for source, learner in ordered]


def cell_text(row: Any) -> str:
    """`0.52 [0.21, 0.80] (18)`; what an interval or a count does not say is left out."""
    text = number(float(row["value"]))
    if math.isfinite(row["low"]) or math.isfinite(row["high"]):
        low, high = (number(float(row[end])) if math.isfinite(row[end]) else "…" for end in ("low", "high"))
        text += f" [{low}, {high}]"
    return f"{text} ({row['n']})" if row["n"] else text


def number(value: float) -> str:
    """Three significant digits; what is a share or a change of one never needs more."""
    return f"{value:.3g}".replace("-", "−")


def _agreed(agreement: pd.DataFrame, series: Sequence[str]) -> dict[str, str]:
    if len(series) < 2:
        return {}
    own = agreement[(agreement["first"] == series[0]) & (agreement["second"] == series[1])]
    found = {}
    for row in own.to_dict("records"):
        sign = "" if pd.isna(row["same_sign"]) else ("same sign" if row["same_sign"] else "opposite sign")
        if not pd.isna(row["both_exclude_zero"]) and row["both_exclude_zero"]:
            sign += "*"
        order = ("" if pd.isna(row["spearman"]) else f"ρ {row['spearman']:.2f}, p {row['p_exact']:.2g}").replace(
            "-", "−"
        )
        found[str(row["metric"])] = "; ".join(filter(None, (sign, order))) or ABSENT
    return found


def markdown(table: pd.DataFrame, agreement: pd.DataFrame, sentences: Sequence[str], missing: Sequence[str]) -> str:
    """The whole as GitHub's Markdown, foreign text escaped."""
    cells = grid(table, agreement)
    header = list(cells.columns[1:])
    blocks = [
        (family, header, own[header].to_numpy().tolist()) for family, own in cells.groupby("family", sort=False)
    ]
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["md"] = escaped_markdown
    return environment.from_string(MARKDOWN).render(
        title="Comparison of the learners", sentences=sentences, blocks=blocks, legend=LEGEND, missing=missing
    )


def escaped_markdown(text: str) -> str:
    """The text so that Markdown shows it as it is, in a table's cell too; one line."""
    escaped = re.sub(r"([\\`*_{}\[\]<>()#+!|~$&@:=-])", r"\\\1", one_line(text))
    return re.sub(r"^(\d+)\.", r"\1\\.", escaped)


def latex(table: pd.DataFrame, agreement: pd.DataFrame) -> str:
    """A longtable in booktabs' style, foreign text escaped."""
    cells = grid(table, agreement).map(one_line)
    families = cells.pop("family")
    cells.columns = pd.Index([escaped_latex(column) for column in cells.columns])
    for name in cells.columns:
        cells[name] = cells[name].map(escaped_latex)
    body = cells.to_latex(
        index=False,
        escape=False,
        longtable=True,
        column_format="l" * len(cells.columns),
        caption="Shared metrics of the learners, beside published figures",
        label="tab:comparison",
    )
    return LATEX.replace("{{ body }}", _with_families(body, families)).replace("{{ legend }}", escaped_latex(LEGEND))


def escaped_latex(text: str) -> str:
    """The text so that LaTeX sets it as it is; one line."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",
        "]": "{]}",
        **IN_MATHS,
        "…": r"\ldots{}",
    }
    return "".join(special.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    """The text in one line, with U+FFFD for control and direction characters."""
    joined = " ".join(str(text).split())
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") else c for c in joined)


def _with_families(body: str, families: pd.Series) -> str:
    """A line with the family's name above its first row."""
    lines, place, seen = [], 0, ""
    inside = False
    columns = len(families)
    for line in body.splitlines():
        if inside and place < columns and line.endswith(r"\\"):
            family = str(families.iloc[place])
            if family != seen:
                rule = [r"\addlinespace"] if seen else []
                lines += [*rule, rf"\multicolumn{{3}}{{l}}{{\textit{{{escaped_latex(family)}}}}} \\"]
                seen = family
            place += 1
        inside = inside or line.strip() == r"\endlastfoot"
        lines.append(line)
    return "\n".join(lines) + "\n"


def missing_lines(table: pd.DataFrame) -> list[str]:
    """What is missing, one line for each reason: learner, metrics, why."""
    gone = table[table["note"].str.startswith(MISSING)]
    found: dict[tuple[str, str], list[str]] = {}
    for row in gone.to_dict("records"):
        named = str(row["metric"]) + (f" of {row['category']}" if row["category"] else "")
        found.setdefault((str(row["learner"]), str(row["note"])[len(MISSING) :]), []).append(named)
    return [f"{learner}: {', '.join(names)}: {reason}" for (learner, reason), names in found.items()]
