"""`edge-devices fit` from end to end on a small made-up table."""

import re
from pathlib import Path

import msgspec
import pytest

from edgelm.devices.cli import main
from edgelm.devices.planner.cost_model.coefficients import Table
from edgelm.devices.published.hardware import hardware_named
from edgelm.devices.published.rows import COLUMNS
from tests.devices.published.synthetic import (
    TRUE,
    row,
    true_decode_ms,
    true_prefill_ms,
    write_csv,
)

_DEVICES = ("Jetson AGX Orin 64GB", "Jetson Orin NX 16GB", "DGX Spark GB10")
_MODELS = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Llama-3.2-3B", "Llama-3.1-8B-Instruct")


def record(device: str, model: str, *, slower: float = 1.0, prompt: int = 512) -> dict[str, str]:
    """What somebody would publish where the cost model is right."""
    hardware = hardware_named(device, "")
    assert hardware is not None
    one = row(model, hardware, bits=4.156, prompt=float(prompt))
    return {
        "device": device,
        "model": model,
        "prompt_len": str(prompt),
        "decode_tok_s": f"{1e3 / (slower * true_decode_ms(one, TRUE)):.2f}",
        "prefill_tok_s": f"{1e3 * prompt / (slower * true_prefill_ms(one, TRUE)):.1f}",
    }


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three devices with three models each, and a row that is left out."""
    records = [record(device, model) for device in _DEVICES for model in _MODELS]
    return write_csv(tmp_path / "rows.csv", [*records, {"spec_decode": "EAGLE-3"}])


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, what was printed, and the errors."""
    code = main(["fit", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def medians(printed: str) -> list[float]:
    """Median errors of the printed tables, as shares."""
    return [float(match) / 100 for match in re.findall(r"\| +\d+ \| ([\d.]+)% \|", printed)]


def test_errors_are_printed(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, rows)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [
        f"{rows}: 12 rows used",
        "     1 left out: speculative decoding",
    ]
    assert "Every device, predicted by a fit on the others:" in lines
    title = "Models left out in five folds, on devices that the fit knows with other models:"
    assert title in lines
    assert out.count("| decode, vendor-published and independent | 12 |") == 2
    assert out.count("| prefill, vendor-published and independent | 12 |") == 2
    assert "crowd-sourced" not in out
    assert len(medians(out)) == 4
    assert max(medians(out)) < 0.1  # rows of the cost model itself are predicted well


def test_coefficients_are_written(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "coefficients.toml"
    code, out, _ = run(capsys, rows, "-o", output)
    assert code == 0
    assert out.endswith(f"\nwrote {output}\n")
    table = msgspec.toml.decode(output.read_bytes(), type=Table)
    assert table.fitted_on == "24 times of 12 published rows"
    found = table.find("vllm", "ampere", "jetson-orin-nx-16gb")
    assert (found.level, found.device) == ("device", "jetson-orin-nx-16gb")
    assert found.coefficients.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.1)
    assert found.coefficients.compute == pytest.approx(TRUE.compute, rel=0.1)


def test_same_rows_same_coefficients(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for name in ("first.toml", "second.toml"):
        run(capsys, rows, "-o", tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_report_is_written(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, rows, "--report", tmp_path / "report")
    assert code == 0
    assert f"wrote {tmp_path / 'report'}\n" in out
    assert (tmp_path / "report" / "predicted.svg").is_file()
    text = (tmp_path / "report" / "errors.md").read_text()
    assert "| vllm | jetson-orin-nx-16gb | 4 |" in text
    assert "| speculative decoding | 1 |" in text
    assert medians(text) == medians(out)


def test_predict_predicts_rows_that_were_not_fitted(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = write_csv(
        tmp_path / "fresh.csv",
        [
            record("Jetson AGX Orin 64GB", "Qwen2.5-7B"),
            record("RTX 4090", "Qwen2.5-7B", slower=1.5),
            {"spec_decode": "EAGLE-3"},
        ],
    )
    code, out, err = run(capsys, rows, "--predict", fresh)
    assert (code, err) == (0, "")
    used, known, unknown = out.split("\n\n")
    assert used == f"{fresh}: 2 rows used\n     1 left out: speculative decoding"
    assert known.startswith("Devices that the fit knows with the same engine:\n")
    assert unknown.startswith("Other devices:\n")
    for part in (known, unknown):
        assert "| decode, vendor-published and independent | 1 |" in part
        assert "| prefill, vendor-published and independent | 1 |" in part
    assert max(medians(known)) < 0.1
    # 1.5 times as slow as the cost model says is 50% too fast a prediction.
    assert medians(unknown) == pytest.approx([0.5, 0.5], abs=0.15)


def test_predicted_rows_do_not_reach_the_fit(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty rows three times too slow do not improve each other."""
    wrong = [record("Jetson AGX Orin 64GB", "Qwen2.5-7B", slower=3.0, prompt=256)] * 20
    fresh = write_csv(tmp_path / "fresh.csv", wrong)
    _, out, _ = run(capsys, rows, "--predict", fresh)
    assert "Other devices:" not in out
    assert medians(out) == pytest.approx([2.0, 2.0], abs=0.3)


def test_predict_writes_a_report(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, rows, "--predict", rows, "--report", tmp_path / "report")
    assert code == 0
    assert out.endswith(f"\nwrote {tmp_path / 'report'}\n")
    assert "Models left out" not in (tmp_path / "report" / "errors.md").read_text()


def test_predict_writes_no_coefficients(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "coefficients.toml"
    code, out, err = run(capsys, rows, "--predict", rows, "-o", output)
    assert (code, out) == (2, "")
    assert err == (
        "error: --predict fits nothing, so there are no coefficients to write; leave out --output\n"
    )
    assert not output.exists()


def test_no_such_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, tmp_path / "gone.csv")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*gone\.csv: .*No such file or directory.*\n", err)


def test_no_such_fresh_table(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, rows, "--predict", tmp_path / "gone.csv")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*gone\.csv: .*No such file or directory.*\n", err)


def test_missing_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",".join(COLUMNS[:-1]) + "\n")
    code, _, err = run(capsys, path)
    assert code == 2
    assert err == f"error: {path}: no column evidence; expected {', '.join(COLUMNS)}\n"


def test_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"spec_decode": "MTP"}, {"spec_decode": "EAGLE-3"}])
    output = tmp_path / "coefficients.toml"
    code, _, err = run(capsys, path, "-o", output)
    assert code == 2
    assert err == (f"error: {path}: no usable rows; left out: {{'speculative decoding': 2}}\n")
    assert not output.exists()


@pytest.mark.parametrize(
    "records",
    [
        [record(_DEVICES[0], model) for model in _MODELS],
        [record(device, _MODELS[0]) for device in _DEVICES],
    ],
    ids=["one-device", "one-model"],
)
def test_table_of_one_device_or_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], records: list[dict[str, str]]
) -> None:
    code, out, err = run(capsys, write_csv(tmp_path / "rows.csv", records))
    assert code in (0, 2)
    assert f"{len(records)} rows used" in out or err.startswith("error: ")


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_output_that_cannot_be_written(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    wrong = {"-o": tmp_path, "--report": rows}[option]
    code, _, err = run(capsys, rows, option, wrong)
    assert code == 2
    assert err.startswith("error: ")
