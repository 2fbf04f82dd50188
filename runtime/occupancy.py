"""What a model's sequences do now: figures for those who watch it."""

from edgelm.runtime.sequences import Sequences


class Occupancy:
    """How many generations run and wait, and what their states take."""

    _sequences: Sequences

    @property
    def sequences(self) -> int:
        """Generations that can run at a time."""
        return len(self._sequences.slots)

    @property
    def running(self) -> int:
        """Generations that have a sequence now."""
        return self._sequences.running

    @property
    def waiting(self) -> int:
        """Requests that wait for a sequence now."""
        return self._sequences.waiting

    @property
    def held_tokens(self) -> int:
        """Tokens whose state the sequences hold now."""
        return sum(slot.session.length for slot in self._sequences.slots)

    @property
    def cache_bytes(self) -> int:
        """Memory of the caches of all sequences."""
        return sum(slot.session.cache_bytes for slot in self._sequences.slots)
