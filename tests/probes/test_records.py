"""The record schema, pinned: a change here breaks every run folder there is."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losscope.landscape import RunError
from losscope.probes import SCHEMA_VERSION, Record, Run

GOLDEN = Path(__file__).parent / "golden" / "records_v1.jsonl"
KEYS = [
    "v", "step", "time", "player", "probe", "status", "reason", "lr", "value", "low", "high", "unit", "kernel",
    "matvecs", "seconds", "values", "arrays", "nonfinite",
]  # fmt: skip

RECORDS = [
    Record(
        0, "model", "sharpness", lr=0.1, value=19.5, low=19.25, high=21.0, unit="curvature", kernel="retained",
        matvecs=12, seconds=0.25, values={"loss": 0.5, "residual": 0.0078125}, time=1767323045.5,
    ),
    Record(50, "model", "log", lr=0.1, values={"loss": 0.25, "accuracy": 1.0}, time=1767323046.0),
    Record(50, "generator", "trace", status="error", reason='ValueError: "no" – naïve\nline', time=1767323047.0),
    Record(
        100, "model", "stability", status="nonfinite", reason="the loss is nan", value=math.nan, low=-math.inf,
        high=math.inf, values={"loss": math.nan, "peak": math.inf, "none": None}, time=1767323048.0,
    ),
    Record(
        100, "model", "mine", value=-1e-300, unit="", arrays={"spectrum": "arrays/model-mine-100-spectrum.npy"},
        time=1767323049.0,
    ),
]  # fmt: skip


def strict(line: str) -> dict:
    """JSON as the standard has it: NaN and Infinity are no numbers."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def same(a: Record, b: Record) -> bool:
    """Equality in which NaN equals NaN."""
    return repr(a) == repr(b)


# --------------------------------------------------------------------------- the golden file


def test_the_writer_still_writes_the_golden_file_byte_for_byte():
    written = "".join(record.to_json() + "\n" for record in RECORDS)
    assert written.encode() == GOLDEN.read_bytes()


def test_the_golden_file_is_still_read():
    lines = GOLDEN.read_bytes().splitlines()
    assert len(lines) == len(RECORDS)
    for line, record in zip(lines, RECORDS, strict=True):
        assert same(Record.from_json(line), record)


def test_keys_and_their_order():
    assert SCHEMA_VERSION == 1
    for line in GOLDEN.read_text().splitlines():
        assert list(strict(line)) == KEYS
    assert list(strict(Record(0, "m", "p").to_json())) == KEYS


def test_pandas_reads_it_without_us():
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_json(GOLDEN, lines=True)
    assert list(frame.columns) == KEYS
    assert frame["step"].tolist() == [0, 50, 50, 100, 100]
    assert frame["value"][0] == 19.5
    assert math.isnan(frame["value"][3])
    assert frame["values"][1] == {"loss": 0.25, "accuracy": 1.0}


# --------------------------------------------------------------------------- numbers that JSON does not have


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["lr", "value", "low", "high", "seconds", "time"])
def test_nonfinite_fields_come_back(field, number):
    line = Record(3, "m", "p", **{field: number}).to_json()
    content = strict(line)
    assert content[field] is None
    assert content["nonfinite"] == [f"{field}={number}"]
    assert repr(getattr(Record.from_json(line), field)) == repr(number)


def test_nonfinite_values_come_back_under_any_name():
    values = {"loss": math.nan, "a=b": math.inf, "a.b": -math.inf, "values.x": math.nan, "": math.inf, "fine": 1.0}
    line = Record(3, "m", "p", values=values).to_json()
    strict(line)
    assert repr(Record.from_json(line).values) == repr(values)


FLOATS = st.none() | st.floats()
NAMES = st.text(max_size=12)


@given(
    st.builds(
        Record,
        step=st.integers(0, 2**53),
        player=NAMES,
        probe=NAMES,
        status=st.sampled_from(["ok", "nonfinite", "error"]),
        reason=st.none() | st.text(),
        lr=FLOATS,
        value=FLOATS,
        low=FLOATS,
        high=FLOATS,
        unit=NAMES,
        kernel=NAMES,
        matvecs=st.integers(0, 2**40),
        seconds=st.floats(0, 1e9),
        values=st.dictionaries(NAMES, FLOATS, max_size=4),
        arrays=st.dictionaries(NAMES, NAMES, max_size=3),
        time=st.floats(0, 1e11),
    )
)
def test_every_record_is_one_line_of_strict_json_and_comes_back(record):
    line = record.to_json()
    assert "\n" not in line
    assert list(strict(line)) == KEYS
    assert same(Record.from_json(line), record)
    assert same(Record.from_json(line.encode()), record)


# --------------------------------------------------------------------------- other versions, other things


def test_a_newer_schema_is_refused_with_advice(tmp_path):
    newer = json.dumps(json.loads(RECORDS[0].to_json()) | {"v": SCHEMA_VERSION + 1})
    with pytest.raises(RunError, match=r"schema 2.*up to 1.*update losscope"):
        Record.from_json(newer)
    (tmp_path / "meta.json").write_text(json.dumps({"identity": {}, "players": {"model": {}}}))
    (tmp_path / "records.jsonl").write_text(RECORDS[0].to_json() + "\n" + newer + "\n")
    with pytest.raises(RunError, match="update losscope"):
        Run(tmp_path)


def test_unknown_keys_are_ignored():
    content = json.loads(RECORDS[0].to_json()) | {"added_later": 3}
    assert same(Record.from_json(json.dumps(content)), RECORDS[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYS, "x"]), inner, max_size=5),
    max_leaves=12,
)


@given(JSON, st.dictionaries(st.sampled_from(KEYS[1:]), JSON, max_size=3))
def test_what_is_no_record_is_a_value_error(anything, replaced):
    for content in (anything, json.loads(RECORDS[0].to_json()) | replaced):
        if isinstance(content, dict) and isinstance(content.get("v"), int) and content["v"] > SCHEMA_VERSION:
            continue
        try:
            record = Record.from_json(json.dumps(content))
        except ValueError:
            continue
        assert hash(record.key) is not None
        assert strict(record.to_json())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"v"',
        b'{"v":1}',
        b'{"step":1}',
        b"\xff\xfe",
        b'{"v":"1","step":0}',
        b"\x00" * 9,
    ],
)
def test_broken_lines_are_value_errors(line):
    with pytest.raises(ValueError):
        Record.from_json(line)
