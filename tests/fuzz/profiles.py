"""Device profiles: fields with strange values; a plan for what is read has figures that can be."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

from edgelm.devices.planner.plan import choices, plan
from edgelm.devices.profile import profile_paths, read_profile
from edgelm.planning import Plan, PlanRequest
from edgelm.python310 import tomllib
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import tiny_config
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.strange import mutate, mutate_number, strange_flat
from tests.fuzz.toml_text import dump_toml, toml

Tree = dict[str, Any]
_NAMES = ("cpu", "jetson-orin-nano-8gb", "rtx-4060-laptop", "jetson-thor-t4000", "h200-sxm-141gb")


class Profiles(Kind):
    """What is read is usable: every plan for it is made of positive, finite figures."""

    name = "profile"

    def prepare(self, folder: Path) -> None:
        self.specs = [DecoderSpec.from_hf(tiny_config(n).to_dict()) for n in ("llama", "gemma3")]
        known = profile_paths()
        names = [name for name in _NAMES if name in known]
        self.trees = [tomllib.loads(known[name].read_text(encoding="utf-8")) for name in names]
        for tree in self.trees:
            path = folder / f"{tree['name']}.toml"
            path.write_text(toml(tree), encoding="utf-8")
            self._use(path)

    def make(self, rng: Random, folder: Path) -> Case:
        tree: Tree = deepcopy(rng.choice(self.trees))
        path = folder / f"{tree['name']}.toml"
        if rng.random() < 0.1:
            data, note = mutate_bytes(rng, toml(tree).encode())
        else:
            count = rng.choice((1, 1, 1, 2, 3))
            if rng.random() < 0.5:
                note = "; ".join(mutate_number(rng, tree) for _ in range(count))
            else:
                note = "; ".join(mutate(rng, tree, value=strange_flat) for _ in range(count))
            data, odd = dump_toml(rng, tree)
            note = f"{note} {odd}".rstrip()
        path.write_bytes(data)
        return Case(note, {"file": path.name})

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        self._use(folder / case.facts["file"])
        return "equal"

    def _use(self, path: Path) -> None:
        profile = read_profile(path)
        for spec in self.specs:
            for engine in {engine.name for engine in profile.engines}:
                for mode in {mode.name for mode in profile.power_modes}:
                    request = PlanRequest(engine=engine, power_mode=mode, prompt=64)
                    result = plan(spec, profile, request)
                    result.table()
                    for one in (result, *choices(spec, profile, request)):
                        _check_figures(one)


def _check_figures(plan: Plan) -> None:
    estimates = (plan.prefill_ms, plan.decode_ms, plan.tokens_per_second)
    figures: list[float] = [plan.weight_bytes, plan.kv_bytes, plan.runtime_bytes + 1, plan.context]
    figures += [figure for e in estimates for figure in (e.value, e.low, e.high)]
    if plan.joules_per_token:
        figures.append(plan.joules_per_token.value + 1e-30)
    if not all(math.isfinite(figure) and figure > 0 for figure in figures):
        raise Wrong(f"a plan of {figures}")
    if not all(e.low <= e.value <= e.high for e in estimates):
        raise Wrong(f"ranges that do not hold their figures: {estimates}")
