"""Tables that a spreadsheet or a script left untidy: no row misread, no crash."""

from pathlib import Path

import pytest

from edgelm.devices.published.rows import COLUMNS, read_rows
from edgelm.devices.published.terms import observations
from edgelm.errors import BadInput
from tests.devices.published.synthetic import RECORD, write_csv


@pytest.mark.parametrize(
    ("batch", "number"), [("16", 16), ("10", 10), ("128", 128), ("8 (matches AI Lab c=8)", 8)]
)
def test_several_sequences_are_apart(tmp_path: Path, batch: str, number: int) -> None:
    table = read_rows(
        write_csv(tmp_path / "rows.csv", [{"batch": batch, "decode_tok_s": f"{12 * number}"}])
    )
    assert not table.rows
    (row,) = table.batched
    assert (row.batch, row.prefill_tok_s) == (number, None)
    assert row.decode_ms == pytest.approx(1e3 / 12)


@pytest.mark.parametrize("rate", ["n/a", "0", "-"])
def test_rate_that_is_no_number_is_none(tmp_path: Path, rate: str) -> None:
    record = {"decode_tok_s": rate, "prefill_tok_s": ""}
    table = read_rows(write_csv(tmp_path / "rows.csv", [record]))
    assert table.left_out == {"no rate stated": 1}


@pytest.mark.parametrize("rate", ["nan", "inf", "-20"])
def test_rate_that_cannot_be_is_not_used(tmp_path: Path, rate: str) -> None:
    records = [{}, {"prefill_tok_s": rate}, {"decode_tok_s": rate}]
    times = observations(read_rows(write_csv(tmp_path / "rows.csv", records)).rows)
    assert all(0 < one.measured_ms < float("inf") for one in times)


def test_short_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{','.join(COLUMNS)}\n{','.join(RECORD.values())}\nJetson,MAXN,Qwen3-4B\n")
    assert len(read_rows(path).rows) == 1


def test_quote_that_never_closes(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'{",".join(COLUMNS)}\n"{"x" * 200_000}\n')
    with pytest.raises(BadInput, match=r"rows\.csv: field larger than field limit"):
        read_rows(path)
