"""What the bucket stage says of each concept, as mixes need it: checked, since such a table may be written by hand."""

from __future__ import annotations

import pandas as pd

from ..errors import UserError
from ..parsing import printable
from ..records import CATEGORIES, PROBED, REGULARISATION, ConceptSet

ALL = "all"
"""The category of every concept where there is no concepts table."""


def concept_labels(concepts_table: pd.DataFrame | None, concept_set: ConceptSet) -> pd.DataFrame:
    """Category and bucket of every concept that has examples, indexed by its name; UserError where the table lacks any."""
    # A class that has regularisation images alone is no concept of the set: it is neither probed nor trained on.
    classes = {e.concept for e in concept_set.split(REGULARISATION)}
    classes -= {e.concept for e in concept_set.examples if e.split != REGULARISATION}
    names = [concept.name for concept in concept_set.concepts if concept.name not in classes]
    probed = {example.concept for example in concept_set.split(*PROBED)}
    if concepts_table is None:
        return pd.DataFrame({"category": ALL, "bucket": ALL}, index=pd.Index(names))
    absent = [column for column in ("concept", "category", "bucket") if column not in concepts_table]
    if absent:
        raise UserError(f"concepts table: no column {', '.join(absent)}; the bucket stage writes them")
    table = concepts_table.set_index("concept")[["category", "bucket"]]
    _check_labels(table)
    # A concept without held-out images is not probed, so it has no category and is in no mix.
    names = [name for name in names if name in table.index or name in probed]
    unlabelled = [name for name in names if name not in table.index]
    if unlabelled:
        raise UserError(
            f"concepts table: no row for {len(unlabelled)} of the set's concepts, the first is {unlabelled[0]}; "
            "probe and bucket the same set"
        )
    return table.loc[names]


def _check_labels(table: pd.DataFrame) -> None:
    """Raise UserError where a concept stands twice, or a label is none that the bucket stage writes."""
    twice = table.index[table.index.duplicated()]
    if len(twice):
        raise UserError(
            f"concepts table: concept '{printable(str(twice[0]))}' stands in it twice; bucket the set again"
        )
    for column, known in (("category", (*CATEGORIES, ALL)), ("bucket", ("known", "unknown", ALL))):
        odd = [value for value in table[column] if value not in known]
        if odd:
            raise UserError(
                f"concepts table: {column} '{printable(str(odd[0]))}' is none of {', '.join(known)}; bucket the set again"
            )
