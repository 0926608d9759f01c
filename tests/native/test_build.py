"""Building the native kernels: compilers that fail, damaged files, and a cache that is the user's alone."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from reverie import native
from reverie.native import build
from reverie.nets.layers import NormSiLU
from tests.core import close

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C compiler")


def forget() -> None:
    """What this process knows about compiled code, and its own folder of it."""
    for remembered in (build.load, build.cache_folder, build._own_folder):
        remembered.cache_clear()


@pytest.fixture
def fresh(monkeypatch, tmp_path) -> Iterator[Path]:
    """An empty cache; what is built there, without optimisation, is forgotten afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ["-O0", "-fPIC"])
    forget()
    yield tmp_path / "reverie"
    monkeypatch.undo()
    forget()


def test_any_of_several_compilers_will_do(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/bin/{name}" if name == "clang" else None)
    assert build.find_compiler() == ["clang"]
    monkeypatch.setenv("CC", "clang -m64")
    assert build.find_compiler() == ["clang", "-m64"]
    monkeypatch.setenv("CC", "icx")
    assert build.find_compiler() is None


def test_without_a_compiler_everything_is_computed_in_plain_tensors(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level(logging.INFO):
        assert not native.supports(torch.ones(1))
    assert "no C compiler" in caplog.text
    x = torch.randn(2, 3)
    close(NormSiLU(3)(x), nn.functional.silu(x / x.square().mean(-1, keepdim=True).sqrt()), rtol=1e-2, atol=1e-3)


def test_a_compiler_that_fails_is_reported_in_one_line(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CC", "false")
    assert not native.supports(torch.ones(1))
    assert len(caplog.records) == 1 and "could not be built" in caplog.text
    assert not list(fresh.rglob("*.so"))


@needs_compiler
def test_a_damaged_library_is_built_again(fresh, caplog):
    version = native.version()
    (built,) = fresh.iterdir()
    built.unlink()  # the file that this process has mapped stays whole
    built.write_bytes(b"damaged")
    build.load.cache_clear()
    assert native.version() == version and not caplog.records


def test_what_cannot_be_loaded_is_built_once(fresh, monkeypatch):
    built = []

    def make(compiler, flags, path):
        built.append(flags)
        path.write_bytes(b"of another OpenMP")

    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr(build, "_build", make)
    for _ in range(2):
        assert not native.supports(torch.ones(1))
        build.load.cache_clear()
    assert len(built) == len(build.EXTRAS)


def test_a_compiler_that_takes_too_long_is_ended_with_all_that_it_started(fresh, monkeypatch, tmp_path, caplog):
    program, child = tmp_path / "slow", tmp_path / "child"
    program.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit\nsleep 60 &\necho $! >> {child}\nwait\n")
    program.chmod(0o755)
    monkeypatch.setenv("CC", str(program))
    monkeypatch.setattr(build, "PATIENCE", 0.5)
    assert not native.supports(torch.ones(1))
    assert len(caplog.records) == 1 and "was not done after 0.5 s" in caplog.text
    (number,) = child.read_text().split()  # it was not tried again with fewer flags
    for _ in range(100):
        if not Path(f"/proc/{number}").exists():
            break
        time.sleep(0.05)  # until somebody has taken note of its end
    assert not Path(f"/proc/{number}").exists()


@pytest.mark.parametrize(("command", "told"), [("gcc 'x", "No closing quotation"), ("strange", "could not be built")])
def test_a_strange_compiler_is_no_crash(command, told, fresh, monkeypatch, tmp_path, caplog):
    program = tmp_path / "strange"
    program.write_text("#!/bin/sh\nprintf '\\377'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CC", command)
    assert not native.supports(torch.ones(1))
    assert told in caplog.text


@needs_compiler
def test_without_a_home_the_kernels_are_built_elsewhere(monkeypatch, tmp_path):
    forget()
    monkeypatch.setattr(build, "FLAGS", ["-O0", "-fPIC"])
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    assert native.version() and list(tmp_path.rglob("*.so"))
    forget()
    assert not list(tmp_path.iterdir())  # nothing is left behind


# --- the cache ---


def test_a_new_cache_is_for_its_owner_alone(fresh):
    assert build.cache_folder() == fresh
    assert fresh.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_others_could_only_read_is_closed_and_used(fresh):
    fresh.mkdir(mode=0o755)
    assert build.cache_folder() == fresh
    assert fresh.stat().st_mode & 0o777 == 0o700


def test_a_system_without_user_ids_keeps_its_cache(fresh, monkeypatch):
    monkeypatch.delattr(os, "getuid")
    assert build.cache_folder() == fresh


def belongs_to_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(build.os, "getuid", lambda: folder.stat().st_uid + 1)


def given_to_another(folder: Path, _: pytest.MonkeyPatch) -> None:
    if os.getuid():
        pytest.skip("only root can give files away")
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)


def open_to_the_group(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def open_to_everyone(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    folder.chmod(0o1777)


def linked_to_an_open_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_everyone(folder.with_name("elsewhere"), monkeypatch)
    folder.symlink_to(folder.with_name("elsewhere"))


def linked_to_a_given_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_to_another(folder.with_name("elsewhere"), monkeypatch)
    folder.symlink_to(folder.with_name("elsewhere"))


def linked_by_another(folder: Path, _: pytest.MonkeyPatch) -> None:
    if os.getuid():
        pytest.skip("only root can give files away")
    folder.with_name("elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.with_name("elsewhere"))
    os.chown(folder, 12345, -1, follow_symlinks=False)


@needs_compiler
@pytest.mark.parametrize(
    "prepare",
    [
        *(belongs_to_another, given_to_another, open_to_the_group, open_to_everyone),
        *(linked_to_an_open_one, linked_to_a_given_one, linked_by_another),
    ],
)
def test_machine_code_that_others_could_have_written_is_not_loaded(prepare, fresh, monkeypatch, caplog):
    prepare(fresh, monkeypatch)
    library = build.load()
    assert library is not None
    assert fresh.resolve() not in Path(library._name).resolve().parents
    assert not list(fresh.iterdir())
    assert len(caplog.records) == 1 and "machine code in it is not used" in caplog.text
