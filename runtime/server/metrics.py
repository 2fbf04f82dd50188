"""What Prometheus reads at /metrics: requests, tokens, speed, cache, memory and sensors."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from edgelm.devices.detection.probes import Probes
from edgelm.devices.sensors.discovery import find_sensors
from edgelm.devices.sensors.reader import Reader
from edgelm.errors import BadInput
from edgelm.runtime.generation.async_stream import AsyncStream
from edgelm.runtime.model import LanguageModel

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_RATES = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


class Metrics:
    """The metrics of one server."""

    def __init__(self, lm: LanguageModel) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files
        self.requests = Counter(
            "edgelm_requests", "Answers by path and status", ("path", "status"), registry=registry
        )
        self.refused = Counter(
            "edgelm_requests_refused",
            "Refused because the queue was full",
            registry=registry,
        )
        self._finished = Counter(
            "edgelm_generations", "Generations by how they ended", ("reason",), registry=registry
        )
        self._prompt = Counter("edgelm_prompt_tokens", "Tokens of prompts", registry=registry)
        self._cached = Counter(
            "edgelm_prompt_tokens_cached", "Tokens of prompts found in a cache", registry=registry
        )
        self._generated = Counter("edgelm_generated_tokens", "Tokens generated", registry=registry)
        self._drafted = Counter(
            "edgelm_drafted_tokens", "Tokens drafted by speculation", registry=registry
        )
        self._accepted = Counter(
            "edgelm_accepted_tokens", "Drafted tokens that were accepted", registry=registry
        )
        self._texts = Counter("edgelm_embedded_texts", "Texts with a vector", registry=registry)
        self._embedding = Histogram(
            "edgelm_embedding_seconds",
            "Of requests for vectors",
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "edgelm_first_token_seconds",
            "From a request to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "edgelm_generation_seconds", "Of whole generations", buckets=_SECONDS, registry=registry
        )
        self._rate = Histogram(
            "edgelm_decode_tokens_per_second",
            "Decoding speed of a generation",
            buckets=_RATES,
            registry=registry,
        )
        registry.register(_ModelCollector(lm))
        self._sensors = _SensorCollector()
        registry.register(self._sensors)

    def count(self, stream: AsyncStream, seconds: float) -> None:
        """Count a generation that has ended, or was left by its client."""
        self._duration.observe(seconds)
        try:
            reply = stream.reply
        except BadInput:  # it did not come to its end
            self._finished.labels("cancelled").inc()
            return
        self._finished.labels(reply.finish_reason).inc()
        self._prompt.inc(reply.usage.prompt_tokens)
        self._cached.inc(reply.usage.cached_tokens)
        self._generated.inc(reply.usage.completion_tokens)
        self._drafted.inc(reply.timings.drafted)
        self._accepted.inc(reply.timings.accepted)
        if reply.timings.tokens_per_second is not None:
            self._rate.observe(reply.timings.tokens_per_second)

    def count_texts(self, texts: int, tokens: int, seconds: float) -> None:
        """Count a request for vectors."""
        self._texts.inc(texts)
        self._prompt.inc(tokens)
        self._embedding.observe(seconds)

    def text(self) -> bytes:
        """All metrics in the format of Prometheus."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Close the sensors."""
        self._sensors.close()


class _ModelCollector:
    """The state of the model at the moment of the question."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def collect(self) -> Iterator[Metric]:
        lm = self._lm
        yield _gauge("edgelm_sequences", "Generations that can run at a time", lm.sequences)
        yield _gauge("edgelm_running", "Generations that have a sequence", lm.running)
        yield _gauge("edgelm_waiting", "Requests that wait for a sequence", lm.waiting)
        yield _gauge("edgelm_cache_tokens", "Tokens in the caches of all sequences", lm.held_tokens)
        yield _gauge("edgelm_cache_bytes", "Memory of the caches of all sequences", lm.cache_bytes)


class _SensorCollector:
    """Power, temperature, memory and throttling, as far as this machine reports them."""

    def __init__(self) -> None:
        self._readers: list[Reader] = find_sensors(Probes())[0]

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "edgelm_sensor", "A sensor of this machine", labels=("name", "kind", "unit")
        )
        for reader in self._readers:
            try:
                value = reader.read()
            except OSError:  # a device that was unplugged or fell asleep
                continue
            if value == value:  # not NaN: there is a value now
                family.add_metric((reader.name, reader.kind, reader.unit), value)
        yield family

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers = []


def _gauge(name: str, what: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, what)
    family.add_metric((), value)
    return family
