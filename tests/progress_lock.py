"""The lock of tqdm's progress bars, for processes that are forked and killed."""

import threading

from tqdm.std import tqdm


def own_progress_lock() -> None:
    """Give this process, and what it forks, a lock that other processes do not share.

    tqdm's own is a semaphore of all that were forked from one process: one that is killed while it
    holds the lock would stop the others forever.
    """
    tqdm.set_lock(threading.RLock())
