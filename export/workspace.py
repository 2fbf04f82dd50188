"""Where one export works: the new bundle, a scratch folder, a cache, and its progress lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgelm.export.cached_steps import code_key, source_key
from edgelm.export.progress import Timed
from edgelm.export.source.files import SourceFiles
from edgelm.export.source.reference import Reference
from edgelm.export.work.cache import ArtifactCache
from edgelm.export.work.folder import work_folder


@dataclass(frozen=True)
class Workspace:
    """The folders of one export.

    bundle: where the bundle grows.
    scratch: a temporary folder on the same disk.
    cache: for what depends on the source alone; durable if it is in the folder of `--work`.
    """

    bundle: Path
    scratch: Path
    cache: ArtifactCache
    progress: Timed

    @property
    def durable_folder(self) -> Path | None:
        """Where results stay for a later export; None without `--work`."""
        return self.cache.folder if self.cache.durable else None

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A folder for a graph that is only measured."""
        with TemporaryDirectory(dir=self.scratch) as folder:
            yield Path(folder)


@contextmanager
def open_workspace(
    bundle: Path,
    work: Path | None,
    source: SourceFiles,
    reference: Reference,
    context: int,
    progress: Timed,
) -> Iterator[Workspace]:
    """Lock the source's part of the work folder, if there is one, and make a scratch folder."""
    with TemporaryDirectory(dir=bundle, prefix="scratch-") as name:
        scratch = Path(name)
        if work is None:
            yield Workspace(bundle, scratch, ArtifactCache(scratch), progress)
            return
        name = source_key(source, reference, context)
        with work_folder(work, name, code_key(), progress) as folder:
            cache = ArtifactCache(folder, durable=True, check=source.check)
            yield Workspace(bundle, scratch, cache, progress)
