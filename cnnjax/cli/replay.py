"""`cnnjax replay`: one step of a run again."""

import dataclasses
import json

from absl import flags
from rich.table import Table

from cnnjax.cli.flags import parse_flags
from cnnjax.cli.tables import print_table
from cnnjax.errors import UserError


def replay(args: list[str]) -> None:
    """Prints loss and gradient norm by layer of the last step that was not finite, or of any."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
        flags.DEFINE_integer("step", None, "from 0; the last of nonfinite.json", 0, flag_values=values)
        flags.DEFINE_bool("json", False, "print JSON", flag_values=values)

    values, _ = parse_flags("replay", args, define)
    if not values.workdir:
        raise UserError("--workdir is missing; name the run folder that `cnnjax train` left")
    from cnnjax.runs.replay import replay_step

    found = replay_step(values.workdir, values.step)
    if values.json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    table = Table("layer", "gradient norm", "parameter norm", title=f"step {found.step}")
    for name, norms in found.layers.items():
        table.add_row(name, *(f"{norm:.4g}" for norm in norms))
    print_table(table)
    print(f"loss {found.loss:.6g}; replayed from step {found.checkpoint}")
    print(f"examples of the train split: {' '.join(map(str, found.indices))}")
