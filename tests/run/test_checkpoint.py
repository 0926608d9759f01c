"""Saving and loading: what goes in, what comes out, which file is used, and what every refusal says."""

from __future__ import annotations

import logging
import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from reverie import config as configuration
from reverie.errors import StoredDataError
from reverie.run import checkpoint
from reverie.run.checkpoint import Checkpoints, DivergenceError, ResourceError, load, save


def state(step: int = 1) -> dict:
    weights = torch.arange(300, dtype=torch.float32).reshape(3, 100) + step
    return {
        "model_state": OrderedDict(weight=weights, half=weights.bfloat16(), empty=torch.zeros(0)),
        "generator": torch.Generator().manual_seed(step).get_state(),
        "random": np.random.Generator(np.random.PCG64(step)).bit_generator.state,
        "metrics_history": [{"step": 1, "return": float("nan")}, {}],
        "config": {"run": {"name": None, "video": True, "target_return": float("inf")}},
        "global_step": step,
    }


def newest(kept: Checkpoints) -> dict:
    return checkpoint.load_first(kept.latest, kept.previous)[1]


def refusal(path: Path) -> str:
    with pytest.raises(StoredDataError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert "weights_only" not in message
    return message


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "a.pt", state())
    loaded = load(tmp_path / "a.pt")
    assert loaded.pop("format") == checkpoint.FORMAT
    assert same(loaded, state())


def test_torch_opens_the_file_under_its_safe_default(tmp_path):
    save(tmp_path / "a.pt", state())
    assert set(torch.load(tmp_path / "a.pt").keys()) == {"format", *state()}
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None


@pytest.mark.parametrize(
    "value",
    [np.float64(1), np.zeros(3), Path("x"), {1, 2}, np.int64(1), object(), print, {("a",): 1}, {np.int64(1): 1}],
    ids=lambda value: type(value).__name__,
)
def test_a_type_that_cannot_be_loaded_safely_is_not_saved(tmp_path, value):
    with pytest.raises(TypeError, match=r"^agent\.parts\[1\].x"):
        save(tmp_path / "a.pt", {"agent": {"parts": [0, {"x": value}]}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_not_saved(tmp_path, number):
    save(tmp_path / "a.pt", state(1))
    poisoned = state(2)
    poisoned["model_state"]["weight"][1, 2] = number
    with pytest.raises(DivergenceError, match=r"^model_state\.weight: not finite"):
        save(tmp_path / "a.pt", poisoned)
    assert load(tmp_path / "a.pt")["global_step"] == 1
    assert DivergenceError.exit_code == 5


def test_a_tensor_cannot_claim_more_than_it_stores(tmp_path):
    with pytest.raises(TypeError, match=r"^bomb: .*more numbers than it stores"):
        save(tmp_path / "a.pt", {"bomb": torch.zeros(1).expand(10**12)})


def test_every_kind_of_damage_is_found(tmp_path):
    """Flips, zeroed pages, foreign bytes, cuts and additions; torch alone loads nearly all the flips without a word."""
    path = tmp_path / "a.pt"
    save(path, state())
    sound = path.read_bytes()
    draw = random.Random(0)
    silent = 0
    for trial in range(400):
        damaged = bytearray(sound)
        place = draw.randrange(len(sound))
        if trial % 4 == 0:
            damaged[place] ^= 1 << draw.randrange(8)
        elif trial % 4 == 1:
            damaged[place : place + 4096] = bytes(len(damaged[place : place + 4096]))
        elif trial % 4 == 2:
            damaged[place : place + 16] = draw.randbytes(16)
        else:
            damaged = damaged[:place] if draw.random() < 0.8 else damaged + draw.randbytes(place)
        if damaged == sound:
            continue
        path.write_bytes(damaged)
        message = refusal(path)
        assert "corrupt" in message or "not a checkpoint" in message
        silent += trial % 4 == 0 and torch_loads(path)
    assert silent > 50, "the digest would not be needed"


def torch_loads(path: Path) -> bool:
    try:
        torch.load(path)
    except Exception:
        return False
    return True


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.pt", tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert "no such checkpoint" in refusal(path)
    torch.save(state(), tmp_path / "plain.pt")
    assert "not a checkpoint of this program" in refusal(tmp_path / "plain.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "not a checkpoint of this program" in refusal(tmp_path / "empty.pt")


@pytest.mark.parametrize(("version", "advice"), [(99, "upgrade reverie"), (0, "use the version of reverie")])
def test_another_format_is_refused_with_advice(tmp_path, monkeypatch, version, advice):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", version)
        save(tmp_path / "a.pt", state())
    assert advice in refusal(tmp_path / "a.pt")


def test_a_run_keeps_the_latest_the_previous_and_the_best(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    kept.save(state(2), best=True)
    kept.save(state(3))
    steps = [load(path)["global_step"] for path in (kept.latest, kept.previous, kept.best)]
    assert steps == [3, 2, 2]
    assert newest(kept)["global_step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_model.pt", "latest.pt", "previous.pt"]


def test_the_latest_is_there_at_every_moment_of_a_save(tmp_path, monkeypatch):
    """Whoever begins a run in this folder must not take it for an empty one."""
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    missing = []
    for name in ("link", "replace", "fsync", "open"):
        real = getattr(os, name)

        def watch(*arguments, real=real):
            missing.append(not kept.latest.exists())
            result = real(*arguments)
            missing.append(not kept.latest.exists())
            return result

        monkeypatch.setattr(os, name, watch)
    kept.save(state(2))
    assert missing and not any(missing)
    assert [load(path)["global_step"] for path in (kept.latest, kept.previous)] == [2, 1]


def test_where_links_are_not_allowed_the_previous_is_a_copy(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.save(state(step))
    assert [load(path)["global_step"] for path in (kept.latest, kept.previous)] == [3, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_model.pt", "latest.pt", "previous.pt"]


def test_a_save_tells_whether_the_former_latest_became_the_previous(tmp_path):
    kept = Checkpoints(tmp_path)
    assert [kept.save(state(step)) for step in (1, 2)] == [False, True]
    kept.latest.write_bytes(b"dust")
    assert not kept.save(state(3))


def test_the_first_checkpoint_is_the_best_so_far(tmp_path):
    Checkpoints(tmp_path).save(state(1))
    assert load(tmp_path / "best_model.pt")["global_step"] == 1


def test_a_corrupt_latest_gives_way_to_the_previous_with_a_warning(tmp_path, caplog):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    kept.save(state(2))
    kept.latest.write_bytes(kept.latest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        assert newest(kept)["global_step"] == 1
    assert "latest.pt" in caplog.text
    assert "previous.pt" in caplog.text


def test_a_corrupt_latest_never_pushes_out_the_sound_one_before_it(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    kept.save(state(2))
    kept.latest.write_bytes(b"dust")
    kept.save(state(3))
    assert [load(path)["global_step"] for path in (kept.latest, kept.previous)] == [3, 1]


def test_a_missing_latest_gives_way_to_the_previous(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    kept.save(state(2))
    kept.latest.unlink()
    assert newest(kept)["global_step"] == 1


def test_when_no_checkpoint_is_sound_the_run_does_not_start_from_nothing(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    kept.latest.write_bytes(b"dust")
    with pytest.raises(StoredDataError, match=r"latest\.pt"):
        newest(kept)


def run_state() -> dict:
    """A state with every section that a run stores beside its agent."""
    return dict.fromkeys(checkpoint.SECTIONS) | {"config": configuration.Config().model_dump(mode="json")}


def test_the_checkpoint_of_a_run_brings_its_configuration(tmp_path):
    save(tmp_path / "a.pt", run_state())
    config, loaded = checkpoint.load_run(tmp_path / "a.pt")
    assert config == configuration.Config()
    assert loaded.keys() == {"format", *checkpoint.SECTIONS}


@pytest.mark.parametrize("section", sorted(checkpoint.SECTIONS))
def test_a_section_that_is_missing_is_named(tmp_path, section):
    save(tmp_path / "a.pt", {name: value for name, value in run_state().items() if name != section})
    with pytest.raises(StoredDataError, match=rf"a\.pt: .*lacks {section};"):
        checkpoint.load_run(tmp_path / "a.pt")


def test_a_configuration_of_another_version_is_the_fault_of_the_file(tmp_path):
    save(tmp_path / "a.pt", run_state() | {"config": {"world": {"depht": 3}}})
    with pytest.raises(StoredDataError, match=r"a\.pt: .*world\.depht = 3: unknown key"):
        checkpoint.load_run(tmp_path / "a.pt")


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / "latest.pt.tmp").write_bytes(b"half")
    Checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_shared_folder_leads_to_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = Path("checkpoints")
    Checkpoints(Path("runs/old/checkpoints"), shared).save(state(1))
    kept = Checkpoints(Path("runs/new/checkpoints"), shared)
    kept.save(state(2))
    kept.save(state(3))
    assert [load(shared / name)["global_step"] for name in ("latest.pt", "best_model.pt")] == [3, 2]
    assert (shared / "latest.pt").resolve() == kept.latest.resolve()
    assert sorted(path.name for path in shared.iterdir()) == ["best_model.pt", "latest.pt"]
    Path("elsewhere").mkdir()
    shared.rename("moved")
    assert load(Path("moved/latest.pt"))["global_step"] == 3


def test_where_links_are_not_allowed_the_shared_folder_holds_copies(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    kept = Checkpoints(tmp_path / "run", tmp_path / "shared")
    kept.save(state(1))
    kept.save(state(2), best=True)
    for name in ("latest.pt", "best_model.pt"):
        assert not (tmp_path / "shared" / name).is_symlink()
        assert load(tmp_path / "shared" / name)["global_step"] == 2


def test_a_run_whose_own_folder_is_the_shared_one_keeps_its_files(tmp_path):
    kept = Checkpoints(tmp_path, tmp_path)
    kept.save(state(1))
    assert not kept.latest.is_symlink()
    assert newest(kept)["global_step"] == 1


def test_a_shared_folder_that_cannot_be_used_costs_a_warning(tmp_path, caplog):
    (tmp_path / "shared").write_text("a file")
    kept = Checkpoints(tmp_path / "run", tmp_path / "shared")
    kept.save(state(1))
    assert newest(kept)["global_step"] == 1
    assert "the checkpoint itself is safe" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot write"):
        Checkpoints(tmp_path / "file" / "checkpoints")
    assert ResourceError.exit_code == 6
