"""Write docs/bad-input.md: python scripts/bad_input_table.py.

Every malformed input of tests/bad_*.py is made in a folder of its own and given to the command line; what that says is
the table. Exit code 1 where a command does not end with code 2.
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bad_input_page import PAGE, all_cases, message_of, page_of

from diffusion_sft import cli
from diffusion_sft.files import write_text

told, wrong = {}, []
with tempfile.TemporaryDirectory() as cache:
    os.environ["XDG_CACHE_HOME"] = cache
    for case in all_cases():
        with tempfile.TemporaryDirectory() as name:
            folder, said = Path(name).resolve(), io.StringIO()
            words = case.make(folder)
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = cli.main(words)
            if code != 2:
                wrong.append(f"{case.group}: {case.name}: exit code {code}")
            told[case.group, case.name] = message_of(said.getvalue(), folder)
write_text(PAGE, page_of(told))
print(f"{PAGE}: {len(told)} inputs")
sys.exit("\n".join(wrong) or 0)
