"""What decoding several sequences in one run gains, and what binds it.

    python -m bench.studies.sequences.batched_decoding BUNDLE
        [--sequences 4] [--depths 64,512] [--threads 2]

The engine alone: seconds of a run of one token of each of 1 to N sequences, at each depth. One
sequence in a graph with the batch axis, against the same graph with its size fixed at 1. Then
generations in threads: one, and N at once, with batching and without. All that is compared
alternates, so that other work on the machine slows both.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import onnx

import edgelm
from bench.studies.sequences.several_sequences import decode_rates
from edgelm.bundle import Manifest, read_manifest
from edgelm.errors import BadInput
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.open import open_session

_ROUNDS = 40
_WARM_UP = 3
# Seconds after which the threads of another session no longer wait for work by spinning.
_PAUSE = 0.01
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
_BATCHED = ("tokens", "past_length", "last_position")
Times = dict[str, list[float]]


class Study:
    """A bundle for a CPU, and how its graph is run.

    Args:
        folder: the bundle; its graph has a batch axis.
        threads: threads for matrix products; None means the physical cores.
    """

    def __init__(self, folder: Path, threads: int | None) -> None:
        manifest = read_manifest(folder)
        if not manifest.graph.takes_batches:
            raise BadInput(f"the graph of {folder} has no batch axis; export the model again")
        self.folder, self.manifest, self.threads = folder, manifest, threads

    def run_seconds(self, sequences: int, depth: int) -> Times:
        """Seconds of runs over 1 to `sequences` sequences that hold `depth` tokens each."""
        with ExitStack() as stack:
            first = stack.enter_context(self._session(self.folder, self.manifest))
            others = [stack.enter_context(first.sibling()) for _ in range(sequences - 1)]
            prompt = _prompt(first, depth)
            first.advance(prompt)
            for session in others:
                session.restore(prompt.tolist(), first.state(depth))
            sizes = [size for size in _SIZES if size <= sequences]
            return _alternating({str(n): _step([first, *others][:n], depth) for n in sizes})

    def axis_seconds(self, depth: int) -> Times:
        """Seconds of a run over one sequence: with the batch axis, and of a fixed size.

        Of two equal sessions the one that is loaded first takes up to a twentieth longer: each kind
        is loaded twice, first and last of four.
        """
        with _fixed(self.folder, self.manifest) as (folder, manifest), ExitStack() as stack:
            kinds = {"axis": (self.folder, self.manifest), "fixed": (folder, manifest)}
            sessions = {
                (name, number): stack.enter_context(self._session(*kinds[name]))
                for number, name in enumerate(("axis", "fixed", "fixed", "axis"))
            }
            for session in sessions.values():
                session.advance(_prompt(session, depth))
            steps = {f"{name}{n}": _step([one], depth) for (name, n), one in sessions.items()}
            seconds = _alternating(steps, pause=_PAUSE)
        return {
            kind: [second for name in seconds if name.startswith(kind) for second in seconds[name]]
            for kind in kinds
        }

    def _session(self, folder: Path, manifest: Manifest) -> EngineSession:
        capacity = manifest.limits.context
        session = open_session(folder, manifest, capacity=capacity, threads=self.threads)
        assert isinstance(session, EngineSession)  # that runs several together
        return session


@contextmanager
def _fixed(folder: Path, manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    """The same graph with a batch of 1, as bundles before the batch axis had it."""
    graph = manifest.graph
    model = onnx.load(folder / graph.file, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].dim_param == "B":
            sizes[0].dim_value = 1
    one = {
        name: msgspec.structs.replace(tensor, shape=(1, *tensor.shape[1:]))
        for name, tensor in (graph.inputs | graph.outputs).items()
        if name in (*_BATCHED, "logits")
    }
    logits = {"logits": one.pop("logits")}
    contract = msgspec.structs.replace(graph, inputs=graph.inputs | one, outputs=logits)
    with tempfile.TemporaryDirectory() as name:
        onnx.save(model, Path(name) / graph.file)
        shutil.copy(folder / graph.data, name)
        yield Path(name), msgspec.structs.replace(manifest, graph=contract)


def _prompt(session: EngineSession, length: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.random.default_rng(0).integers(5, session.vocab_size, length)


def _step(sessions: list[EngineSession], depth: int) -> Callable[[], None]:
    """A run of one token of each, after which they are as before."""

    def step() -> None:
        if len(sessions) == 1:
            sessions[0].advance(np.array([7], dtype=np.int64))
        else:
            EngineSession.advance_each(sessions, [7 + n for n in range(len(sessions))])
        for session in sessions:
            session.rewind(depth)

    return step


def _alternating(steps: dict[str, Callable[[], None]], *, pause: float = 0.0) -> Times:
    seconds: Times = {name: [] for name in steps}
    for number in range(_WARM_UP + _ROUNDS):
        order = list(steps.items())
        for name, step in order if number % 2 else reversed(order):
            time.sleep(pause)
            started = time.perf_counter()
            step()
            if number >= _WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _medians(times: Times) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main(folder: Path, sequences: int, depths: list[int], threads: int | None) -> None:
    """Print all of it."""
    study = Study(folder, threads)
    for depth in depths:
        seconds = _medians(study.run_seconds(sequences, depth))
        for size, each in seconds.items():
            gain = int(size) * seconds["1"] / each
            print(f"depth {depth}, {size} together: {1000 * each:.2f} ms, {gain:.2f} times one")
    both = _medians(study.axis_seconds(depths[0]))
    print(f"one sequence, axis against fixed size: speed ratio {both['fixed'] / both['axis']:.3f}")
    for batching in (True, False):
        with edgelm.load(folder, sequences=sequences, threads=threads, batching=batching) as lm:
            one, several = (statistics.median(rates) for rates in decode_rates(lm, sequences))
        print(
            f"generations, batching {batching}: one {one:.1f} tokens/s, {sequences} at once "
            f"{several:.1f}, ratio {several / one:.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--depths", default="64,512", help="tokens that each sequence holds")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    tokens = [int(one) for one in given.depths.split(",")]
    main(given.bundle, given.sequences, tokens, given.threads)
