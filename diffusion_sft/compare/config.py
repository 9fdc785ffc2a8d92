"""Which runs are compared, and how many random draws intervals and p-values take."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ranges import check_range


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The settings of `diffusion-sft compare`."""

    runs: list[str] = field(default_factory=list)
    """Folders of studies, each with either half or both. Several are further seeds, bases or worlds."""
    external: list[str] = field(default_factory=list)
    """CSV or parquet files of results made elsewhere, in the columns that docs/comparison.md names."""
    output_dir: str = "runs/compare"
    seed: int = 0
    """Of the bootstrap and of the permutations."""
    num_resamples: int = 2000
    """Of each bootstrap."""
    num_permutations: int = 9999
    """Of each permutation test that cannot try all of them."""

    def __post_init__(self) -> None:
        check_range(self, "num_resamples", "num_permutations", least=99)
        check_range(self, "seed", least=0)
