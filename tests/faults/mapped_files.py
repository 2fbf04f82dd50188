"""Files that are written through memory maps, in a process of its own: a full disk may end it.

python -m tests.faults.mapped_files KIND FOLDER
"""

import shutil
import sys
from collections import namedtuple
from pathlib import Path

from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.teacher_cache import build_cache
from edgelm.compress.model import spec_of
from edgelm.errors import DoesNotFit
from edgelm.quantize.hessians import Hessians
from tests.checkpoints.models import tiny_model
from tests.compress.training import rows

_Usage = namedtuple("_Usage", "total used free")


def main(kind: str, folder: Path) -> None:
    # As if the disk filled up after it was asked for its free space.
    shutil.disk_usage = lambda _: _Usage(1 << 40, 0, 1 << 40)  # type: ignore[assignment,return-value]
    model = tiny_model("llama", intermediate_size=512)
    try:
        if kind == "teacher cache":
            data = rows(600, length=64)
            build_cache(model, "tiny", data, CacheSettings("sampled", 64), folder / "cache")
        else:
            (folder / "moments").mkdir()
            moments = Hessians(folder / "moments", spec_of(model), parts=("mlp.down",))
            with moments.watching(model):
                model.model(input_ids=rows().batch(range(4)))
    except (DoesNotFit, OSError) as error:
        print(error)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
