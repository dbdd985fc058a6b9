"""The help of a command, and the examples of the fields of a config."""

import pytest

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.cli.help import describe
from cnnjax.runs import experiment
from cnnjax.training import optimizers, schedules

# Examples that need files, images of another size, or a network with stages.
ELSEWHERE = {"init_from", "freeze", "loss.distill", "optimizer.learning_rate_scales", "mesh", "trackers"}
ELSEWHERE |= {name for name in config_lib.FIELDS if name.startswith("data.")} | {"swa_start"}  # or ema_decay


def config(**examples):
    return config_lib.assign(config_lib.default(), examples)


@pytest.mark.parametrize("name", config_lib.FIELDS)
def test_the_example_of_a_field_is_valid_and_can_be_typed(name):
    row = config_lib.FIELDS[name]
    config_lib.validate(config(**{name: row.example}))
    assert config_lib.parse_value(name, str(row.example)) == row.example != row.default


def test_an_experiment_takes_the_examples_together():
    fields = {name: row.example for name, row in config_lib.FIELDS.items() if name not in ELSEWHERE}
    made = experiment.build(
        config(
            **fields,
        )
    )
    assert made.augment.output_shape == (28, 28, 1)
    assert made.config.optimizer.schedule.startswith("step(")


def test_fields_are_nested_as_in_a_config():
    lines = describe(config(seed=3)).splitlines()
    shown = [line.split(":")[0] for line in lines if ":" in line[:28]]
    named, group = [], ""
    for leaf in shown:
        if not leaf.startswith("  "):
            group = ""
        named.append(group + leaf.strip())
        if f"{leaf}:" in lines:  # nothing but a group's name
            group = f"{named.pop()}."
    assert named == list(config_lib.FIELDS)
    assert f"{'seed: 3':<30}seed of all random draws; at least 0 and below 2**32; e.g. 7" in lines


def test_the_fields_of_the_optimizer_list_what_there_is():
    for field, known in (("name", optimizers.OPTIMIZERS), ("schedule", schedules.SCHEDULES)):
        listed = config_lib.FIELDS[f"optimizer.{field}"].meaning.removesuffix(", with options")
        assert listed.replace(" or ", ", ").split(", ") == list(known)


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_is_as_wide_as_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert main.run(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert int(columns) - 8 <= max(map(len, lines)) <= int(columns)
    assert "optimizer:" in lines
    assert "  learning_rate: 0.003        peak learning rate; greater than 0; e.g. 0.01" in lines
