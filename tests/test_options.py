"""Options: mistakes are one line, and what nothing reads is refused where it is chosen in vain."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest

from reverie.config import Config, build, dump, load, settle
from reverie.errors import ConfigError
from reverie.learned_rates import MetaOptions, WorldRateOptions
from reverie.options import OTHERS, Options, refuse_in_vain
from reverie.world.options import WorldOptions

COSINE = MetaOptions(world=WorldRateOptions(rule="cosine"))


class Engine(Options):
    switches = {"fuel": OTHERS, "gears": {"clutch"}}

    fuel: str = "none"
    gears: int = 1
    clutch: float = 0.5
    """Read where there is fuel and more than one gear."""


class Car(Options):
    engine: Engine = Engine(gears=2)
    doors: int = 4


def test_what_is_not_read_has_the_outermost_switch_as_its_reason():
    assert Engine().unread() == dict.fromkeys(("gears", "clutch"), ("fuel",))
    assert Engine(fuel="gas").unread() == {"clutch": ("gears",)}
    assert Engine(fuel="gas", gears=3).unread() == {}


@pytest.mark.parametrize(
    ("car", "refused"),
    [
        (Car(engine=Engine(gears=3)), 'engine.gears = 3: is not used while engine.fuel = "none"; change that'),
        (Car(engine=Engine(fuel="gas", clutch=0.7)), "engine.clutch = 0.7: is not used while engine.gears = 1;"),
        (Car(), None),  # two gears are its default, whatever an engine by itself has
        (Car(engine=Engine(fuel="gas", gears=3, clutch=0.7), doors=2), None),
        (Car(engine=Engine(fuel="none", gears=3)), None),  # whoever wrote that there is no fuel knows it
    ],
)
def test_what_stands_without_its_switch_is_refused(car, refused):
    if refused is None:
        refuse_in_vain(car)
    else:
        with pytest.raises(ConfigError, match=refused):
            refuse_in_vain(car)


def test_what_is_chosen_is_refused_even_where_the_switch_is_written():
    car = Car(engine=Engine(fuel="none", gears=3, clutch=0.7))
    refuse_in_vain(car, {"doors": 4})
    with pytest.raises(ConfigError, match=r"^engine\.clutch = 0\.7: is not used while engine\.fuel"):
        refuse_in_vain(car, {"engine": {"clutch": 0.7}})


IN_VAIN = [
    ("meta.world.rule", "cosine", "meta.enabled = false"),
    ("meta.guard", False, "meta.enabled = false"),
    ("behavior.objective.step", 0.1, "behavior.objective.learned = []"),
    ("hierarchy.goal_optimizer.rate", 0.1, "hierarchy.enabled = false"),
    ("intrinsic.curiosity.schedule.decay", 9, 'intrinsic.curiosity.kind = "none"'),
    ("intrinsic.every", 3, 'intrinsic.curiosity.kind = "none" and intrinsic.empowerment.kind = "none"'),
    ("agent.world_optimizer.final", 0.5, "agent.world_optimizer.decay = 0"),
    ("logger.wandb_project", "mine", "logger.wandb = false"),
]


@pytest.mark.parametrize(("key", "value", "reason"), IN_VAIN)
def test_an_option_is_refused_whose_switch_is_off(key, value, reason):
    line = f"{key} = .*: is not used while {reason.replace('[', '.').replace(']', '.')}; change that, or leave it out$"
    with pytest.raises(ConfigError, match=line):
        load(values={key: value})
    stored = Config().model_dump(mode="json")  # as a checkpoint has it, where every switch is written
    with pytest.raises(ConfigError, match=line):
        settle(stored, "a.pt", values={key: value})


def test_the_number_of_skills_is_for_skills():
    with pytest.raises(ConfigError, match='num_options = 9: is not used while hierarchy.goals = "autoencoder"'):
        load("default", ["num_options=9"])
    assert load("default", ["num_options=9", "hierarchy.goals=skill"]).hierarchy.num_options == 9


def test_an_option_counts_as_soon_as_its_switch_is_on():
    settings = ["meta.enabled=true", "meta.world.rule=cosine", 'behavior.objective.learned=["entropy"]']
    assert load(None, [*settings, "behavior.objective.step=0.1"]).meta.world.rule == "cosine"


def test_a_run_whose_switch_was_turned_off_loads_with_all_that_stands_in_it(tmp_path):
    on = load(None, ["meta.enabled=true", "meta.world.rule=cosine", "hierarchy.enabled=true", "agent.horizon=16"])
    off = settle(on.model_dump(mode="json"), "a.pt", ["meta.enabled=false"])
    assert not off.meta.enabled and off.meta.world.rule == "cosine"
    again = build(off.model_dump(mode="json"))
    assert again == off and settle(again.model_dump(mode="json"), "b.pt", ["meta.enabled=true"]).meta == on.meta
    (tmp_path / "config.json").write_text(dump(off))
    assert load(tmp_path / "config.json") == off
    assert load("default", ["hierarchy.enabled=false"]).hierarchy.goal_weight == 3


def test_an_option_in_vain_is_refused_from_python_as_well():
    with pytest.raises(ConfigError, match=r"meta\.world\.rule = \"cosine\": is not used while meta\.enabled = false"):
        Config(meta=COSINE)
    assert Config(meta=COSINE.model_copy(update={"enabled": True})).meta.world.rule == "cosine"


def sections(options: Options) -> Iterator[Options]:
    yield options
    for _, value in options:
        if isinstance(value, Options):
            yield from sections(value)


def test_every_switch_is_an_option_and_so_is_what_it_switches():
    switched = {type(section): section.switches for section in sections(Config()) if section.switches}
    assert len(switched) > 5
    for kind, switches in switched.items():
        assert {*switches, *chain(*switches.values())} <= kind.model_fields.keys()


@pytest.mark.parametrize(
    ("build_it", "line"),
    [
        (lambda: WorldOptions(modality_dropout=1.0), "WorldOptions.modality_dropout = 1.0: should be less than 1"),
        (lambda: WorldOptions(**{"siez": "tiny"}), 'WorldOptions.siez = "tiny": unknown key'),
        (lambda: Config(**{"run": {"steps": 0}}), "Config.run.steps = 0: should be greater than or equal to 1"),
        (lambda: Car(**{"engine": {"gears": "many"}}), 'Car.engine.gears = "many": should be a valid integer'),
    ],
)
def test_options_that_are_built_directly_are_refused_in_one_line(build_it, line):
    with pytest.raises(ConfigError) as caught:
        build_it()
    assert str(caught.value).startswith(line) and str(caught.value).isprintable()
