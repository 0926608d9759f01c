"""What is installed from a wheel is the whole program, and works in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
SHORT = [
    "replay.batch_size=4",
    "replay.length=8",
    "run.evaluate_every=40",
    "run.evaluate_episodes=1",
    "run.video=false",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the package, as pip installs it from its wheel. The packages it needs are elsewhere."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "reverie", source / "reverie", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("reverie-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("reverie/")}
    files = (path.relative_to(ROOT) for path in (ROOT / "reverie").rglob("*") if path.is_file())
    assert packed == {path.as_posix() for path in files if "__pycache__" not in path.parts}
    subprocess.run([*PIP, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.mark.timeout(400)
def test_the_installed_command_trains_evaluates_and_inspects_in_an_empty_folder(site, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def reverie(*arguments: str) -> str:
        done = subprocess.run(
            [site / "bin" / "reverie", *arguments], cwd=tmp_path, env=environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    origin = [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('reverie').origin)"]
    assert subprocess.check_output(origin, cwd=tmp_path, env=environment, text=True).startswith(str(site))
    trained = reverie("train", "--steps", "80", *SHORT)
    assert re.search("^INFO - no --config: the preset default, ", trained, re.MULTILINE)
    assert "Finished at step 80" in trained
    assert "over 2 episodes" in reverie("evaluate", "--episodes", "2")
    assert "80" in reverie("inspect")
