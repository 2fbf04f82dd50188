r"""Bundles as a model of lm-evaluation-harness.

    python -m edgelm.bench.evaluation.harness run --model edgelm \
        --model_args bundle=bundle/ --include_path docs/tasks --tasks cities

takes the arguments of `lm-eval`, which finds only models that were registered before it runs; in a
program, `import edgelm.bench.evaluation.harness` registers `edgelm`. Requests are encoded and cut
as the harness does it for transformers, so that an fp32 bundle gives the same for each document.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from edgelm.bench.evaluation.bundle.backend import BundleBackend
from edgelm.bench.evaluation.bundle.requests import continuation_requests
from edgelm.errors import BadInput, MissingPackage
from edgelm.runtime.generation.options import GREEDY, Options
from edgelm.runtime.loading import load

NAME = "edgelm"
_MAX_GEN_TOKS = 256  # the harness's own default
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
Request = tuple[Any, list[int], list[int]]


class HarnessRequests:
    """The requests of the harness, answered by a bundle.

    Args:
        bundle: its folder.
        threads: of a CPU; None for all physical cores.
        backend: a bundle that is loaded already, in place of `bundle`.
        others: what the harness passes to every model (batch size, device) and a bundle has not.
    """

    def __init__(
        self,
        bundle: str = "",
        threads: int | None = None,
        *,
        backend: BundleBackend | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if backend is None:
            if not bundle:
                raise BadInput("give the bundle's folder: --model_args bundle=DIR")
            model = load(bundle, threads=threads)
            model.check_generates()
            backend = BundleBackend(model)
        self.backend_model = backend
        self.ids = backend.tokenizer
        # The harness asks it for a chat template and a name.
        self.tokenizer = None

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a document."""
        return self.ids.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or EOS where there is none.

        Raises:
            BadInput: the tokenizer names neither.
        """
        for token in (self.ids.bos_token_id, self.ids.eos_token_id):
            if token is not None:
                return token
        raise BadInput(
            "this bundle's tokenizer has neither a beginning- nor an end-of-sequence token, one of "
            "which lm-eval puts before a text without context; choose tasks with a context"
        )

    @property
    def max_length(self) -> int:
        """Tokens that the cache holds."""
        return self.backend_model.context

    @property
    def tokenizer_name(self) -> str:
        """The bundle's folder, for the harness's cache."""
        return str(self.backend_model.model.folder)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; by default with the special tokens that the tokenizer adds."""
        return list(
            self.ids(string, add_special_tokens=add_special_tokens is not False)["input_ids"]
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        # One token more than a context holds: the last one is only predicted.
        pairs = [(context, continuation) for _, context, continuation in requests]
        asked = continuation_requests(pairs, self.max_length + 1)
        found = self.backend_model.run(asked)
        return [(one.log_probability, one.greedy) for one in found]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context as the harness cuts them."""
        utils = import_module("lm_eval.utils")
        totals = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(parts)))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, or sampled ones where the task asks for them, up to a stop string."""
        return [self._generated(*request.args) for request in requests]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text, in the bundle's own template.

        Raises:
            BadInput: the assistant's message is to be continued.
        """
        if not add_generation_prompt:
            raise BadInput(
                "edgelm renders a chat template only up to the assistant's turn; choose a task "
                "that does not continue an assistant's message"
            )
        model = self.backend_model.model
        tokens = model.chat_tokens(chat_history, allow_special=True)  # type: ignore[arg-type]
        return model.tokenizer.decode([int(token) for token in tokens], special=True)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The harness writes it into its results."""
        return "the bundle's own" if chat_template else None

    def _generated(self, context: str, given: dict[str, Any]) -> str:
        kwargs = import_module("lm_eval.models.utils").normalize_gen_kwargs(given, _MAX_GEN_TOKS)
        limit = int(kwargs["max_gen_toks"])
        tokens = self.tok_encode(context)[-(self.max_length - limit) :]
        stops = [text for text in kwargs["until"] if text]
        options = Options(**GREEDY, max_tokens=limit, stop=stops)
        for name in _SAMPLING:
            if kwargs.get("do_sample") and kwargs.get(name) is not None:
                options[name] = kwargs[name]  # type: ignore[literal-required]
        return self.backend_model.model.generate(tokens, **options).text


def model_class() -> Any:
    """The class that the harness knows as `edgelm`.

    Raises:
        MissingPackage: lm_eval is not installed.
    """
    try:
        base = import_module("lm_eval.api.model").TemplateLM
        registry = import_module("lm_eval.api.registry")
    except ImportError as error:
        raise MissingPackage(
            f"lm-evaluation-harness needs lm-eval ({error}): pip install 'lm-eval>=0.4.10'"
        ) from None
    if NAME in registry.model_registry:
        return registry.get_model(NAME)
    made = type("EdgeLM", (HarnessRequests, base), {})
    return registry.register_model(NAME)(made)


def harness_model(backend: BundleBackend) -> Any:
    """A loaded bundle as the harness takes it."""
    return model_class()(backend=backend)


def main() -> None:
    """Run lm-eval's own command with `edgelm` registered."""
    model_class()
    import_module("lm_eval.__main__").cli_evaluate()


if __name__ == "__main__":
    main()
