"""Files are also written when Python is ending: functions that nobody closed save their runtime caches then."""

import hashlib
import subprocess
import sys
from pathlib import Path

CODE = """
import atexit, io, sys
from pathlib import Path
from rewriter.building.cache_entry import copy_and_hash

def save():
    record = copy_and_hash(io.BytesIO(b"x" * (9 << 20)), Path(sys.argv[1]), durable=True)
    print(record.size, record.sha256)

atexit.register(save)
"""


def test_a_file_is_copied_and_hashed_while_python_ends(tmp_path):
    target = tmp_path / "copy"
    done = subprocess.run(
        [sys.executable, "-c", CODE, target], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert (done.stderr, done.stdout.split()) == ("", [str(9 << 20), hashlib.sha256(target.read_bytes()).hexdigest()])
