"""Whether two agents can take each other's place, in the words that a checkpoint keeps."""

from __future__ import annotations

import pytest

from reverie.compatibility import compare, describe, explained
from reverie.errors import ConfigError, MisfitError, StoredDataError
from reverie.types import ActionPart, ObservationSpec

ACTION = (ActionPart("steer", 2, discrete=False),)


def test_what_was_described_before_is_described_the_same():
    before = {"cell": "int64[2] of 7 classes", "height": "float32[]", "image": "uint8[64, 64, 3]"}
    observation = {
        "image": ObservationSpec((64, 64, 3), "uint8"),
        "height": ObservationSpec((), "float32"),
        "cell": ObservationSpec((2,), "int64", 7),
    }
    assert describe(observation, ACTION) == {"observation": before, "action": {"steer": "2 numbers"}}


def test_kind_rate_and_absence_make_a_difference():
    plain = ObservationSpec((8,), "int16")
    specs = [
        plain,
        ObservationSpec((8,), "int16", kind="audio"),
        ObservationSpec((8,), "int16", kind="audio", rate=16_000),
        ObservationSpec((8,), "int16", optional=True),
        ObservationSpec((8,), "int16", kind="audio", rate=16_000, optional=True),
    ]
    words = [describe({"x": spec}, ACTION)["observation"]["x"] for spec in specs]
    assert words[0] == "int16[8]" and words[-1] == "int16[8], audio, 16000 Hz, optional"
    assert len(set(words)) == len(specs)


def test_what_is_observed_since_then_can_be_left_out():
    with pytest.raises(
        StoredDataError, match="mission is missing in it .*, or leave it out with 'env.kinds={\"mission\": null}'$"
    ):
        compare("observation", {"grid": "a"}, {"grid": "a", "mission": "b"})
    for saved, mine in (({"grid": "a"}, {"grid": "b"}), ({"grid": "a", "mission": "b"}, {"grid": "a"})):
        with pytest.raises(StoredDataError, match="it was trained with$"):
            compare("observation", saved, mine)


def test_a_misfit_is_the_fault_of_what_was_changed():
    stored = {"world": {"size": "tiny", "deter": None}, "run": {"steps": 5}}
    now = {"world": {"size": "1m", "deter": None}, "run": {"steps": 7}}
    with (
        pytest.raises(ConfigError, match=r'^it does not fit; changed: world.size \(was "tiny"\)$'),
        explained(stored, now),
    ):
        raise MisfitError("it does not fit")
    with pytest.raises(StoredDataError, match="^it is corrupt$"), explained(stored, now):
        raise StoredDataError("it is corrupt")
    with pytest.raises(MisfitError, match="^it does not fit$"), explained(stored, stored | {"run": {"steps": 7}}):
        raise MisfitError("it does not fit")
