"""How many different solutions did random starts end in? Those that a chain of short steps joins are one."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

SAME_SOLUTION = 0.1
"""Solutions nearer than a tenth of their length are one. Descents that end in the same isolated minimum come within
their last steps of each other, a few hundredths; independent directions in many dimensions lie √2 apart."""


def num_distinct(solutions: np.ndarray, *, relative_distance: float = SAME_SOLUTION) -> int:
    """The number of clusters under single linkage (Sibson, 1973).

    The distance of two solutions is 2‖a − b‖ / (‖a‖ + ‖b‖), so that it is the same for any unit of length. Where
    solutions fill a set of some dimension, every start ends elsewhere and the number is that of the starts.

    Args:
        solutions: (num_solutions, num_dims).
        relative_distance: of two neighbours in a cluster, at most.
    """
    if len(solutions) < 2:
        return len(solutions)
    first, second = np.triu_indices(len(solutions), k=1)
    values = np.asarray(solutions, dtype=np.float64)
    norms = np.linalg.norm(values, axis=1)
    lengths = norms[first] + norms[second]
    differences = 2 * np.linalg.norm(values[first] - values[second], axis=1)
    distances = np.divide(differences, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    clusters = fcluster(linkage(distances, method="single"), t=relative_distance, criterion="distance")
    return int(clusters.max())
