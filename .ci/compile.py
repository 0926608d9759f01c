"""Compiles every source file with the Python that runs this, in memory: nothing is left behind."""

import platform
import sys
from pathlib import Path

FOLDERS = "reverie", "tests", "benchmarks"

failed = 0
sources = [Path("run_dreamer.py"), *(path for folder in FOLDERS for path in sorted(Path(folder).rglob("*.py")))]
for path in sources:
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError, Warning) as error:
        failed += 1
        print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr)
print(f"Python {platform.python_version()}: {len(sources)} files, {failed} failed")
sys.exit(failed > 0)
