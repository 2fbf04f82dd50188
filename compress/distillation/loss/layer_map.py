"""Which layers of student and teacher a loss on hidden states compares."""

from collections.abc import Sequence

from edgelm.compress.ranges import LayerOrEmbedding
from edgelm.errors import BadInput

EMBEDDING = -1  # the layer number of the embeddings' output
LayerMap = tuple[tuple[LayerOrEmbedding, LayerOrEmbedding], ...]
"""Pairs (student layer, teacher layer) whose outputs are compared."""


def default_map(student_layers: int, teacher_layers: int) -> LayerMap:
    """The paper's best pairs: the embeddings, and the third layer from the end on both sides."""
    late = (max(0, student_layers - 3), max(0, teacher_layers - 3))
    return ((EMBEDDING, EMBEDDING), late)


def check_map(pairs: Sequence[tuple[int, int]], student_layers: int, teacher_layers: int) -> None:
    """Raise BadInput unless every layer of a map exists."""
    for student, teacher in pairs:
        if not (-1 <= student < student_layers and -1 <= teacher < teacher_layers):
            raise BadInput(
                f"layer map {student}:{teacher}: the student has layers 0 to {student_layers - 1}, "
                f"the teacher 0 to {teacher_layers - 1}; -1 is the embeddings"
            )
