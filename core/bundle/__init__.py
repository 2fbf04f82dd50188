"""The bundle: the folder that export writes and that runtime and bench read.

`bundle.json` is the manifest. It lists every file with its SHA-256 and maps roles to the inputs and
outputs of the graph: readers look up roles and never rely on tensor names. The format is described
in docs/reference/bundle.md.
"""

from edgelm.bundle.files import bundle_file, graph_sha256, hash_files, verify
from edgelm.bundle.manifest import (
    CacheContract,
    CacheLayer,
    CompiledEngine,
    EngineFile,
    EngineRequirement,
    FileEntry,
    GraphCheck,
    GraphContract,
    GraphSegment,
    Limits,
    Lineage,
    Manifest,
    StateTensor,
    TensorContract,
)
from edgelm.bundle.manifest_file import (
    DRAFT,
    MANIFEST,
    SCHEMA_VERSION,
    encode_manifest,
    read_manifest,
    write_manifest,
)

__all__ = [
    "DRAFT",
    "MANIFEST",
    "SCHEMA_VERSION",
    "CacheContract",
    "CacheLayer",
    "CompiledEngine",
    "EngineFile",
    "EngineRequirement",
    "FileEntry",
    "GraphCheck",
    "GraphContract",
    "GraphSegment",
    "Limits",
    "Lineage",
    "Manifest",
    "StateTensor",
    "TensorContract",
    "bundle_file",
    "encode_manifest",
    "graph_sha256",
    "hash_files",
    "read_manifest",
    "verify",
    "write_manifest",
]
