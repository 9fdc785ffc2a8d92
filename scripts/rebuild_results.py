"""Make everything that is published of the study anew from the published tables, or check that it is what they give.

    python scripts/rebuild_results.py                 # write tables, figures, docs/study.md, docs/advice.md, README's findings
    python scripts/rebuild_results.py --check         # write nothing, name what differs; exit code 1 where something does
    python scripts/rebuild_results.py --rerun unknown-100-full-seed0   # teach one run anew and compare its evaluations
    python scripts/rebuild_results.py --publish runs/world world-0     # take a study's tables, then rebuild

Published are the tables that stages measured (`data/results/WORLD/{probe,finetune,evaluate,solve}`); buckets, dynamics, means,
comparisons, figures and every number of the write-up are made of them here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from study.checking import differences
from study.deriving import derive, published_worlds
from study.figures import draw_all
from study.numbers import Published
from study.pages import PAGES, README, ClaimError, write_pages
from study.publishing import publish
from study.rerunning import rerun

from diffusion_sft.errors import UserError

ROOT = Path(__file__).parent.parent
RESULTS, FIGURES = "data/results", "docs/study"


def rebuild(root: Path) -> None:
    """Make all that is made of the tables below `root`/data/results."""
    derive(root / RESULTS)
    published = Published(root / RESULTS)
    draw_all(published, root / FIGURES)
    write_pages(published, root)


def check() -> int:
    """Rebuild in a copy and name what differs."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copytree(ROOT / RESULTS, copy / RESULTS)
        shutil.copyfile(ROOT / README, copy / README)
        rebuild(copy)
        found = differences(ROOT, copy, [RESULTS, FIGURES, *PAGES.values(), README])
    print("\n".join(found.lines))
    print(f"{found.num_files} files rebuilt from {found.num_sources} tables: {len(found.lines)} differ")
    return 1 if found.lines else 0


def rerun_one(name: str, world: str, learner: str, folder: Path) -> int:
    """Teach one run anew and say whether its evaluations lie in the published intervals."""
    table = rerun(ROOT / RESULTS / world, learner, name, folder)
    print(table.to_string(index=False))
    inside, same = int(table["agrees"].sum()), int(table["identical"].sum())
    print(f"{name}, {world}: of {len(table)} rows {inside} lie in the published interval, {same} are the same number")
    return 0 if inside == len(table) else 1


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, name what differs")
    parser.add_argument("--publish", nargs=2, metavar=("STUDY", "WORLD"), action="append", default=[])
    parser.add_argument("--rerun", metavar="RUN", help="a folder's name in data/results/WORLD/finetune")
    parser.add_argument("--world", default="world-0", help="of the run")
    parser.add_argument("--learner", default="diffusion", choices=("diffusion", "llm"), help="of the run")
    parser.add_argument("--output", type=Path, default=Path("runs/again"), help="where the run is made anew")
    asked = parser.parse_args()
    try:
        for study, world in asked.publish:
            publish(Path(study), ROOT / RESULTS / world)
        if not published_worlds(ROOT / RESULTS):
            raise UserError(f"{RESULTS}: no study is published here; give one with --publish STUDY WORLD")
        if asked.rerun:
            return rerun_one(asked.rerun, asked.world, asked.learner, asked.output)
        if asked.check:
            return check()
        rebuild(ROOT)
    except (UserError, ClaimError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
