"""From raw samples to what report.json holds, by hand."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgelm.bench.peers.engines import SkippedEngine
from edgelm.bench.report.page.markdown import markdown
from edgelm.bench.report.records import REPORT_VERSION, Report, Result
from edgelm.bench.report.report import write_json
from edgelm.bundle import Manifest, read_manifest
from tests.bench.records import WITH_GPU, on_gpu, report, samples, timed, watched


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="module")
def results(manifest: Manifest) -> dict[str, Result]:
    return {result.test: result for result in report(manifest).results}


def test_prefill(results: dict[str, Result]) -> None:
    result = results["pp100"]
    # 100 tokens in 50, 100 and 200 ms
    assert result.tokens_per_second.samples == pytest.approx((2000, 1000, 500))
    assert result.tokens_per_second.median == pytest.approx(1000)
    assert result.tokens_per_second.p10 == pytest.approx(600)
    assert result.tokens_per_second.p90 == pytest.approx(1800)
    assert result.ttft_ms == 100
    assert result.itl_ms is None
    assert result.bound_share is None


def test_decode(results: dict[str, Result]) -> None:
    result = results["tg4"]
    # Rounds of four steps of 10, 20 and 10 ms
    assert result.tokens_per_second.samples == pytest.approx((100, 50, 100))
    assert result.tokens_per_second.median == pytest.approx(100)
    assert result.ttft_ms == 2
    assert result.itl_ms is not None
    assert (result.itl_ms.p50, result.itl_ms.p90) == (10, 20)
    assert results["tg4@d50"].ttft_ms == 50


def test_bound_share_is_bytes_over_bandwidth(results: dict[str, Result]) -> None:
    # A step reads 1 MB of weights and 1 kB of cache a token at a mean depth of 2: at 10 GB/s
    # that is 0.1002 ms, of the 10 ms that it took.
    assert results["tg4"].bound_share == pytest.approx(0.1002 / 10)
    assert results["tg4@d50"].bound_share == pytest.approx(0.1052 / 20)


def test_an_untied_embedding_is_not_read_by_a_step(manifest: Manifest) -> None:
    spec = msgspec.structs.replace(manifest.spec, tie_word_embeddings=False)
    untied = msgspec.structs.replace(manifest, spec=spec)
    share = {result.test: result.bound_share for result in report(untied).results}["tg4"]
    read = 1e6 * (1 - spec.embedding_parameters / spec.parameters) + 2000
    assert share == pytest.approx(read / 10e9 * 1e3 / 10)


def test_figures_of_the_engine(results: dict[str, Result], manifest: Manifest) -> None:
    for result in results.values():
        assert result.engine == "edgelm int8 tiny"
        assert result.load_ms == 20
        assert result.load_samples_ms == (10, 30, 20)
        assert (result.hash_ms, result.tokenizer_ms) == (3, 4)
        assert result.peak_rss_bytes == result.memory.peak == 50_000_000
        assert (result.memory.base, result.memory.loaded) == (20_000_000, 30_000_000)
        assert result.memory.kv == 154_000
        assert result.bits_per_weight == pytest.approx(8e6 / manifest.spec.parameters)
        assert (result.kl, result.top1, result.perplexity_ratio) == (0.0123, 0.956, 1.01)
        assert (result.kv, result.context) == ("fp32", 154)
        assert (result.options, result.engine_version) == ("threads 2", "1.2")


def test_what_a_peer_does_not_tell_is_none(manifest: Manifest) -> None:
    made = report(manifest, samples("peer", figures=None))
    peer = next(result for result in made.results if result.engine == "peer")
    assert (peer.hash_ms, peer.tokenizer_ms) == (None, None)
    assert (peer.kl, peer.top1, peer.perplexity_ratio) == (None, None, None)


def test_energy_is_of_the_generated_tokens_alone(manifest: Manifest) -> None:
    made = report(manifest, ours=timed("edgelm int8 tiny"), sensors=watched(10.0))
    by_test = {result.test: result for result in made.results}
    # 4, 8 and 4 s of steps at 10 W, for twelve tokens; the second before each is not theirs
    assert by_test["tg4"].joules_per_token == pytest.approx(160 / 12)
    assert by_test["tg4@d50"].joules_per_token is None  # nobody noted when it ran
    assert by_test["pp100"].joules_per_token is None
    assert made.energy_sensors == ("VDD_IN",)


def test_an_idle_gpu_s_power_is_not_an_engine_s(manifest: Manifest) -> None:
    sensors = watched(part="gpu")
    made = report(manifest, ours=timed("edgelm int8 tiny"), sensors=sensors)
    assert {result.joules_per_token for result in made.results} == {None}
    assert made.energy_sensors == ()


def test_a_processor_s_power_is(manifest: Manifest) -> None:
    made = report(manifest, ours=timed("edgelm int8 tiny"), sensors=watched(6.0, part="cpu"))
    assert made.results[1].joules_per_token == pytest.approx(96 / 12)


def test_on_a_gpu_its_bandwidth_and_its_power_count(manifest: Manifest) -> None:
    ours = on_gpu("edgelm int8 tiny")
    made = report(manifest, ours=ours, sensors=watched(6.0, part="gpu"), machine=WITH_GPU)
    by_test = {result.test: result for result in made.results}
    # as above, at 100 GB/s, of the second that a step took
    assert by_test["tg4"].bound_share == pytest.approx(0.01002 / 1000)
    assert by_test["tg4"].joules_per_token == pytest.approx(96 / 12)
    assert by_test["tg4"].memory.gpu == 70_000_000
    assert report(manifest).results[0].memory.gpu is None
    unknown = report(manifest, ours=ours).results  # of a GPU that nobody measured
    assert {result.bound_share for result in unknown} == {None}


def test_each_engine_pays_for_the_parts_that_it_uses(manifest: Manifest) -> None:
    """A CPU peer beside an engine on the GPU: the GPU's power is not the peer's."""
    made = report(
        manifest,
        timed("peer"),
        ours=on_gpu("edgelm int8 tiny"),
        sensors=watched(6.0, part="gpu"),
        machine=WITH_GPU,
    )
    joules = {r.engine: r.joules_per_token for r in made.results if r.test == "tg4"}
    assert joules == {"edgelm int8 tiny": pytest.approx(96 / 12), "peer": None}
    assert "read from VDD_IN, the GPU's for engines that compute there, while" in markdown(made)


def test_rounds_too_short_for_the_sensors_have_no_energy(manifest: Manifest) -> None:
    short = samples("edgelm int8 tiny")
    short.windows = timed("edgelm int8 tiny").windows
    made = report(manifest, ours=short, sensors=watched())
    assert made.results[1].joules_per_token is None


@pytest.mark.parametrize(
    ("throttled", "hit"),
    [
        ((-2.0, -1.0), []),
        ((3.0, 3.5), ["tg4"]),
        ((18.0, 21.0), ["pp100", "tg4"]),
        ((46.0, 47.0), []),  # after the last test
    ],
    ids=["never", "one", "two", "outside"],
)
def test_throttling_is_the_result_s_whose_window_it_hit(
    manifest: Manifest, throttled: tuple[float, float], hit: list[str]
) -> None:
    sensors = watched(throttled=throttled)
    made = report(manifest, ours=timed("edgelm int8 tiny"), sensors=sensors)
    assert [result.test for result in made.results if result.throttled] == hit
    assert made.throttled == bool(hit)
    assert made.sensors is not None
    assert made.sensors.throttle_events == ({"cpu-throttle-alert": 1} if throttled[0] > 0 else {})


def test_without_sensors_nothing_is_said_of_them(manifest: Manifest) -> None:
    made = report(manifest, ours=timed("edgelm int8 tiny"))
    assert made.sensors is None
    assert not made.throttled
    assert {(r.throttled, r.joules_per_token) for r in made.results} == {(False, None)}


def test_the_sensors_are_in_the_json(manifest: Manifest, tmp_path: Path) -> None:
    made = report(manifest, ours=timed("edgelm int8 tiny"), sensors=watched())
    write_json(made, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_bytes()
    read: dict[str, Any] = json.loads(text)
    power = read["sensors"]["sensors"][0]
    assert (power["name"], power["kind"], power["unit"]) == ("VDD_IN", "power", "W")
    assert power["energy_j"] == pytest.approx(500.0)
    assert read["sensors"]["unread"] == [{"what": "GPU", "where": "NVML", "why": "no <driver>"}]
    assert read["throttled"] is False
    assert msgspec.json.decode(text, type=Report) == made


def test_reports_of_earlier_versions_can_be_read(manifest: Manifest) -> None:
    old: dict[str, Any] = msgspec.to_builtins(report(manifest))
    for name in ("sensors", "throttled", "energy_sensors", "target", "gate", "expected"):
        del old[name]
    for result in old["results"]:
        del result["throttled"], result["joules_per_token"], result["device"]
    read = msgspec.convert(old, type=Report)
    assert (read.sensors, read.gate, read.expected) == (None, None, None)
    assert "# tiny: edgelm report" in markdown(read)


def test_target_and_gate_are_the_first_bundle_s(manifest: Manifest) -> None:
    made = report(manifest)
    assert (made.target, made.gate) == ("cpu", manifest.gate)
    assert made.gate is not None
    assert made.expected is not None
    assert {result.device for result in made.results} == {"cpu"}
    failed = report(manifest, absent=(SkippedEngine("edgelm int4 other", "failed: gone"),))
    assert (failed.gate, failed.expected) == (None, None), "which bundle failed is not known"


# Fields that readers of report.json rely on; a change of meaning raises REPORT_VERSION.
FIELDS = {
    "engine": str,
    "test": str,
    "ttft_ms": float,
    "peak_rss_bytes": int,
    "load_ms": float,
    "weight_bytes": int,
    "kl": float,
    "top1": float,
    "bits_per_weight": float,
    "kv": str,
    "context": int,
}


def test_json_has_the_promised_fields(manifest: Manifest, tmp_path: Path) -> None:
    made = report(manifest, samples("peer"), absent=(SkippedEngine("llama.cpp", "not installed"),))
    write_json(made, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert text.endswith("}\n")
    read: dict[str, Any] = json.loads(text)
    assert read["schema_version"] == REPORT_VERSION == 1
    assert read["source_sha256"] == manifest.lineage.sha256
    assert read["parameters"] == manifest.spec.parameters
    assert read["quality_tokens"] == 2048
    assert read["absent"] == [["llama.cpp", "not installed"]]
    assert read["machine"]["cpu"] == "Test CPU"
    assert len(read["results"]) == 6
    assert [r["engine"].startswith("edgelm") for r in read["results"]] == [True] * 3 + [False] * 3
    for result in read["results"]:
        for name, kind in FIELDS.items():
            assert isinstance(result[name], kind), name
        speed = result["tokens_per_second"]
        assert set(speed) == {"median", "p10", "p90", "samples"}
        assert len(speed["samples"]) == 3
    assert msgspec.json.decode(text.encode(), type=Report) == made


def test_no_results_are_a_report_too(manifest: Manifest) -> None:
    made = report(manifest)
    empty = msgspec.structs.replace(made, results=())
    assert msgspec.json.decode(msgspec.json.encode(empty), type=Report) == empty
