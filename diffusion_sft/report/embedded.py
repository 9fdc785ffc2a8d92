"""Tables inside the page: columns of JSON that a script reads, in which nothing can end the element that holds it.

A table becomes {column: values}. Numbers are written in full, so that they are the table's; a missing or infinite one is
null. Texts are listed once: {"levels": the different texts, "codes": their places, -1 where missing}.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from .wording import cut

TEXT_LENGTH = 2000
"""Longer texts are cut to this many characters in the page; the tables beside it are not cut."""

_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def script_json(content: Any) -> Markup:
    """JSON for the inside of `<script type="application/json">`.

    ASCII alone, and without `<`, `>` and `&`: neither `</script>` nor `<!--` nor a lone surrogate can be in it.
    """
    return Markup(json.dumps(content, allow_nan=False, separators=(",", ":")).translate(_ESCAPES))


def columns_of(table: pd.DataFrame) -> dict[str, Any]:
    """The columns of a table as described at the head of this module; of columns of one name the last counts."""
    return {str(name): column_of(table.iloc[:, place]) for place, name in enumerate(table.columns)}


def column_of(values: pd.Series) -> Any:
    """One column: numbers and truth values as a list, everything else as levels and codes."""
    if pd.api.types.is_bool_dtype(values):
        return [None if pd.isna(value) else bool(value) for value in values]
    if pd.api.types.is_integer_dtype(values):
        return [None if pd.isna(value) else int(value) for value in values]
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(float, na_value=np.nan)
        return [float(value) if np.isfinite(value) else None for value in numbers]
    texts = values.astype(object).map(lambda value: cut(str(value), TEXT_LENGTH), na_action="ignore")
    codes, levels = pd.factorize(texts)
    return {"levels": [str(level) for level in levels], "codes": [int(code) for code in codes]}
