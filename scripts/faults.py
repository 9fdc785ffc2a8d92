"""Disturb every stage at random points, and see whether it ends as if nothing had happened.

    python scripts/faults.py                                          # all of it: twenty points of each fault
    python scripts/faults.py --output docs/faults.md                  # and write the table there
    python scripts/faults.py --stage probe --fault kill --point 17    # one point again

Exit code 1 where any attempt did not end as the undisturbed run did.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fault_disks import private_mounts

if __name__ == "__main__":
    mounts = private_mounts()  # before anything starts a thread
    from fault_table import main

    sys.exit(main(mounts))
