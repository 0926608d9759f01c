"""Files made to run code: none does, whether the loader stops at the digest or, with a right digest, at torch."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from reverie.errors import StoredDataError
from reverie.run import checkpoint

EXECUTED = {"exec", "compile", "os.system", "subprocess.Popen", "os.posix_spawn", "socket.connect", "pickle.find_class"}
seen: list[str] = []
watching = False
sys.addaudithook(lambda event, _: seen.append(event) if watching and event in EXECUTED else None)


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    "system": Payload(os.system, "touch hacked"),
    "eval": Payload(builtins.eval, "open('hacked', 'w')"),
    "exec": Payload(builtins.exec, "open('hacked', 'w')"),
    "open": Payload(builtins.open, "hacked", "w"),
    "popen": Payload(subprocess.Popen, ["touch", "hacked"]),
    "import": Payload(builtins.__import__, "antigravity"),
}
RAW = {
    "global": b"cbuiltins\neval\n(S'1'\ntR.",
    "inst": b"(S'touch hacked'\nios\nsystem\n.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch hacked\x85R.",
    "huge long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "nested lists": b"\x80\x02" + b"(" * 50_000 + b"l" * 50_000 + b".",
    "empty": b"",
    "stop": b".",
    "no state": pickle.dumps({"weights": 1}),
    "list": pickle.dumps([1, 2, 3]),
    "format of text": pickle.dumps({"format": "x" * 9}),
    "array": pickle.dumps({"format": 1, "array": np.zeros(3)}),
}


def archive(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch archive around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
    return buffer.getvalue()


def wrappings(content: bytes):
    yield content
    yield archive(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("pickle"), io.BytesIO(content))
    yield buffer.getvalue()


def signed(data: bytes) -> bytes:
    """With the right digest: whoever can write the file can write that too."""
    if data[-22:-18] == b"PK\x05\x06":
        data = data[:-2] + struct.pack("<H", checkpoint.TRAILER)
    return data + checkpoint._trailer(memoryview(data))


@pytest.fixture(autouse=True)
def warm(tmp_path, monkeypatch):
    """Loads and refuses once before anybody watches: the first time imports."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "sound.pt", {"a": torch.zeros(2)})
    checkpoint.load(tmp_path / "sound.pt")
    refuse(tmp_path / "x.pt", signed(archive(RAW["global"])))
    seen.clear()


def refuse(path, data: bytes) -> None:
    global watching
    path.write_bytes(data)
    watching = True
    try:
        with pytest.raises(StoredDataError) as caught:
            checkpoint.load(path)
    finally:
        watching = False
    assert str(caught.value).isprintable()
    assert "weights_only" not in str(caught.value)
    assert not (path.parent / "hacked").exists()


@pytest.mark.parametrize("name", [*CALLS, *RAW])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_foreign_file_runs_code(tmp_path, name):
    contents = [RAW[name]] if name in RAW else [pickle.dumps({"format": 1, "x": CALLS[name]}, p) for p in (0, 2, 4)]
    for content in contents:
        for data in wrappings(content):
            refuse(tmp_path / "x.pt", data)
            refuse(tmp_path / "x.pt", signed(data))
    assert seen == []


def test_the_payloads_would_run_if_anybody_let_them(tmp_path):
    global watching
    watching = True
    pickle.loads(pickle.dumps(CALLS["open"])).close()
    watching = False
    assert (tmp_path / "hacked").exists()
    assert "pickle.find_class" in seen


def test_an_archive_that_unpacks_to_more_than_it_is_large_is_refused(tmp_path):
    bomb = archive(b"\x80\x02" + b"0" * 50_000_000, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    refuse(tmp_path / "x.pt", signed(bomb))


def test_a_tensor_that_claims_a_trillion_numbers_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "x": torch.zeros(1).expand(10**12)}, buffer)
    refuse(tmp_path / "x.pt", signed(buffer.getvalue()))


def test_poison_in_a_signed_file_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "x": torch.tensor([1.0, float("nan")])}, buffer)
    refuse(tmp_path / "x.pt", signed(buffer.getvalue()))
