"""What inputs for adapters cost: CPU time of a token, without an adapter and with each.

    python -m bench.studies.speed.adapter_cost PLAIN ADAPTED

PLAIN is a bundle without adapters, ADAPTED one of the same model and precision with some. Steps
of all of them alternate, in one thread; processor time is compared, pair by pair.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import edgelm
from edgelm.runtime.engines.session import Session

_STEPS, _PAST, _MOST = 200, 64, 120


def _seconds(session: Session, token: int) -> float:
    if session.length > _MOST:
        session.rewind(_PAST)
    started = time.thread_time()
    session.advance(np.array([token], dtype=np.int64))
    return time.thread_time() - started


def main(plain: Path, adapted: Path) -> None:
    """Print a line for each."""
    with edgelm.load(plain, threads=1) as base, edgelm.load(adapted, threads=1) as switchable:
        first, other = base.session, switchable.session
        sessions: dict[str, Session] = {"no inputs": first, "no adapter": other}
        for name in switchable.adapters:
            sessions[name] = other.sibling()
            sessions[name].use_adapter(switchable.adapter(name))
        prompt = np.random.default_rng(0).integers(4, first.vocab_size, _PAST)
        for session in sessions.values():
            session.advance(prompt)
        times = {name: np.empty(_STEPS) for name in sessions}
        for step in range(_STEPS):
            for name, session in sessions.items():
                times[name][step] = _seconds(session, int(prompt[step % _PAST]))
        for name, found in times.items():
            ratio = float(np.median(found / times["no inputs"]))
            print(f"{name:20} {1e3 * found.min():8.2f} ms at least, {ratio:.3f} times no inputs")
        for name in switchable.adapters:
            sessions[name].close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plain", type=Path, help="a bundle without adapters")
    parser.add_argument("adapted", type=Path, help="one of the same model with some")
    given = parser.parse_args()
    main(given.plain, given.adapted)
