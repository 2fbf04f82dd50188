"""Every kind that is fuzzed, by name."""

from tests.fuzz.bundles import Bundles
from tests.fuzz.configs import Configs
from tests.fuzz.ggufs import Ggufs
from tests.fuzz.kind import Kind
from tests.fuzz.manifests import Manifests
from tests.fuzz.profiles import Profiles
from tests.fuzz.recipes import Recipes
from tests.fuzz.safetensors_files import SafetensorsFiles
from tests.fuzz.saved_sessions import SavedSessions
from tests.fuzz.templates import Templates
from tests.fuzz.texts import Texts
from tests.fuzz.tokenizer_files import TokenizerFiles

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        Bundles,
        Manifests,
        Ggufs,
        SafetensorsFiles,
        Configs,
        TokenizerFiles,
        Templates,
        Recipes,
        Profiles,
        Texts,
        SavedSessions,
    )
}
