"""The benchmark's own logic: shape file, cases, bursts, goals, tables, and subjects that are right.

No time is checked here: that is `make bench`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import burst, cases, goals, plot, report, shapes, tflite_models, weights, worker
from benchmarks.cases import Case, Contender, Kind
from benchmarks.limits import DOT_KINDS
from benchmarks.peers import litert, ours
from benchmarks.results import DRAM, DRAM_SMALL_PAGES, Limit, Result, Results
from benchmarks.subject import NotMeasured
from tfmot_ternary import packing, runtime

SMALL_CASES = (
    cases.product(1, 24, 130),
    cases.product(5, 24, 130),
    cases.conv2d(7, 20, 12, 3),
    Case(Kind.EMBEDDING, 3, 50, 70),
)


def test_shape_file():
    layers = shapes.parse_layers("# comment\n\nmodel  qkv 6144 2048  # fused\nother q 8 4\n")
    assert layers == [shapes.Layer("model", "qkv", 6144, 2048), shapes.Layer("other", "q", 8, 4)]
    assert shapes.distinct_sizes([*layers, shapes.Layer("third", "v", 8, 4)]) == {
        (6144, 2048): ["model qkv"],
        (8, 4): ["other q", "third v"],
    }


@pytest.mark.parametrize("line", ["model qkv 6144", "model qkv a 4", "model qkv 0 4", "a b 1 2 3"])
def test_shape_file_names_a_bad_line(line):
    with pytest.raises(ValueError, match=f"line 2: .*{line}"):
        shapes.parse_layers(f"# first\n{line}\n")


def test_own_shape_file():
    layers = shapes.parse_layers(shapes.DEFAULT_PATH.read_text())
    assert {x.model for x in layers} == {"moondream2", "paligemma_3b", "gemma3_1b", "llama3.2_1b"}


def test_case_survives_json():
    for case in (*SMALL_CASES, cases.walk(1 << 30), cases.EMPTY, *cases.CONVOLUTIONS):
        assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_contenders_are_unique_and_named():
    for case in (*cases.DECODE, *cases.PREFILL, *cases.CONVOLUTIONS, cases.walk(1)):
        names = [contender.name for contender in cases.contenders(case)]
        assert len(names) == len(set(names)) > 1
    assert "llama.cpp TQ2_0" in [c.name for c in cases.contenders(cases.walk(1))]


def test_bursts_cover_all_with_the_pinned_in_each():
    pinned = (Contender("ours", "t2"), Contender("ours", "t2 g128"))
    contenders = cases.contenders(cases.walk(1))
    for memory in (0, 100, 450, 10_000):
        split = list(burst.bursts(contenders, pinned, 100, memory))
        assert all(tuple(chosen[:2]) == pinned for chosen in split)
        others = [c for chosen in split for c in chosen[2:]]
        assert sorted(others, key=str) == sorted(set(contenders) - set(pinned), key=str)
        assert all(len(chosen) <= max(3, memory // 100) for chosen in split)
    assert list(burst.bursts(pinned, pinned, 100, 0)) == [list(pinned)]


def test_walk_bytes(monkeypatch):
    monkeypatch.setattr(burst.limits, "cache_bytes", lambda level: 32 << 20)
    assert burst.walk_bytes(7, 1 << 40) == (7 << 20, "7 MiB by --walk_mib")
    chosen, text = burst.walk_bytes(0, 1 << 40)
    assert chosen > 6 * (32 << 20)
    assert "memory" not in text
    chosen, text = burst.walk_bytes(0, 400 << 20)
    assert chosen == 100 << 20
    assert "too small" in text


def result(case: Case, name: str, microseconds: float, threads=1, number=0, **fields) -> Result:
    contender = next(c for c in cases.contenders(case) if c.name == name)
    samples = [microseconds * 1e-6] * 3
    return Result(case, contender, threads, number, samples=samples, **fields)


def limit(name: str, value: float, number: int | None, threads=1) -> Limit:
    return Limit(name, threads, "", [value], number)


def goal(rows: list[goals.Goal], text: str, threads=1) -> goals.Goal:
    (found,) = [row for row in rows if text in row.subject and row.threads == threads]
    return found


def test_goals_of_a_walk_stay_within_a_burst():
    case = cases.walk(1 << 20)
    results = Results(
        [
            # 8.5e5 bytes in 100 us: 8.5 GB/s of 10. Burst 1 has a slower machine.
            result(case, "ours t2", 100, weight_bytes=850_000),
            result(case, "ours t5", 80),
            result(case, "LiteRT int2", 160),
            result(case, "ours t2", 200, number=1, weight_bytes=850_000),
            result(case, "llama.cpp TQ2_0", 280, number=1),
            Result(case, Contender("llama_cpp", "TQ1_0"), 1, 1, reason="no such package"),
        ],
        [limit(DRAM, 10, 0), limit(DRAM, 5, 1), limit(DRAM, 10, None)]
        + [limit(DRAM_SMALL_PAGES, 9, None)],
    )
    rows = goals.evaluate(results)
    share = goal(rows, "DRAM, 1 x 2048 x 2048: t2, share")
    assert share.measured == pytest.approx(0.85)
    assert share.note == "94% of reads in small pages"
    fastest = goal(rows, "DRAM, 1 x 2048 x 2048: t2 over the fastest")
    assert fastest.measured == pytest.approx(1.4)  # TQ2_0 in its own burst, not 2.8
    assert fastest.verdict == "FAIL"
    assert "fastest: llama.cpp TQ2_0" in fastest.note
    assert "without llama.cpp TQ1_0: no such package" in fastest.note
    assert goal(rows, "t5 over t2").verdict == "pass"
    assert goal(rows, "b1 over t2").verdict == "not measured"


def test_goals_of_the_cache():
    case = cases.DECODE[1]
    dots = DOT_KINDS["avx512vnni"]
    results = Results(
        [
            result(case, "ours t2", 50),
            result(case, "LiteRT int4", 79),
            result(case, "ours t2 g64", 75),
            result(case, "ours t2 g128", 63),
            result(case, "ours t2", 27, threads=2, number=1),
        ],
        [limit(dots, 900, 0)],
    )
    rows = goals.evaluate(results)
    assert goal(rows, "1x8192x2048: t2 over LiteRT int4").verdict == "FAIL"  # 1.58
    assert goal(rows, "1x8192x2048: t2 over LiteRT int2").verdict == "not measured"
    peak = goal(rows, "share of the dot-product peak")
    assert peak.measured == pytest.approx(2e-9 * 8192 * 2048 / 50e-6 / 900)
    assert goal(rows, "1x8192x2048: t2 g64").verdict == "pass"  # 1.5, at most 1.5
    assert goal(rows, "1x8192x2048: t2 g128").verdict == "FAIL"  # 1.26
    assert goal(rows, "2 threads over 1", threads=2).measured == pytest.approx(50 / 27)


def test_goals_take_the_slowest_format():
    conv, small = cases.CONVOLUTIONS[0], cases.SMALL
    results = Results(
        [result(conv, f"ours {f}", us) for f, us in (("t2", 90), ("t5", 110), ("b1", 80))]
        + [result(conv, "LiteRT int8", 100), result(cases.EMPTY, "ours empty", 0.5)]
        + [result(small, f"ours {f}", us) for f, us in (("t2", 1), ("t5", 3), ("b1", 1))]
    )
    rows = goals.evaluate(results)
    slowest = goal(rows, conv.name)
    assert (slowest.measured, slowest.note) == (pytest.approx(100 / 110), "t5")
    fixed = goal(rows, "fixed cost")
    assert (fixed.measured, fixed.note, fixed.verdict) == (pytest.approx(2.5), "t5", "FAIL")
    incomplete = Results(results.results[1:])
    assert goal(goals.evaluate(incomplete), conv.name).note == "missing: t2"


def test_tables_and_plot(tmp_path):
    case = cases.DECODE[0]
    results = Results(
        [
            result(case, "ours t2", 20, weight_bytes=1 << 20, error=0.005),
            Result(case, Contender("llama_cpp", "TQ2_0"), 1, 0, reason="no such package"),
        ],
        [limit(DRAM, 10, None), limit(DOT_KINDS["avx2"], 300, None)],
    )
    text = report.results_tables(results)
    assert "| ours t2         |        20.00 |" in text
    assert "no such package" in text
    table = report.goals_table(goals.evaluate(results), only_measured=True)
    assert table.startswith("| goal")
    assert "0 pass, 0 FAIL" in table
    assert plot.roofline(results, 1, tmp_path / "roofline.png")
    assert [path.name for path in tmp_path.iterdir()] == ["roofline.png"]
    assert not plot.roofline(results, 2, tmp_path / "none.png")


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("group_size", [0, 64])
def test_weights_keep_the_size_of_what_they_multiply(levels, group_size):
    matrix = weights.matrix(Case(Kind.PRODUCT, 1, 512, 512), levels, group_size)
    assert (matrix.scales == matrix.scales.astype(np.float16)).all()
    radius = np.abs(np.linalg.eigvals(matrix.dense())).max()
    # Finite size and the row's fixed first two weights move the edge of the spectrum this much.
    assert 0.8 < radius < 1.25


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["t2", "t5", "b1", "t2 g64"])
def test_our_subjects_give_the_result(case, variant):
    subject = ours.prepare(case, variant, 1)
    # 8-bit activations cost about 1 % (relative_error raises at 5 %); a look-up does not round.
    assert subject.error < (1e-6 if case.kind is Kind.EMBEDDING else 0.03)
    subject.calibrate(1e-4)
    assert subject.time() > 0


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_float_subjects_give_the_result(case):
    assert litert.prepare(case, "float32", 1).error < 1e-5  # float32 sums of at most 180 products


def test_wrong_result_is_an_error():
    case = SMALL_CASES[0]
    x, dense = weights.activations(case), weights.matrix(case).dense()
    right = x @ dense.T
    assert weights.relative_error(case, dense, x, right) < 1e-5
    with pytest.raises(RuntimeError, match="expected a relative error"):
        weights.relative_error(case, dense, x, right[:, ::-1])


@pytest.mark.parametrize("own_weights", [False, True])
def test_chain(own_weights):
    case = cases.product(1, 64, 64)
    matrix = weights.matrix(case)
    content = tflite_models.packed_model(case, matrix, "t2")
    packed = packing.pack(matrix.codes, "t2").tobytes()
    chained = tflite_models.chain(content, 3, own_weights)
    # The model's own constants stay in the file.
    assert chained.count(packed) == (4 if own_weights else 1)
    interpreter = runtime.make_interpreter(chained, num_threads=1)
    interpreter.allocate_tensors()
    x = weights.activations(case)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    cube = np.linalg.matrix_power(matrix.dense().astype(np.float64), 3)
    assert weights.relative_error(case, cube, x, y) > 0


@pytest.mark.parametrize(("peer", "variant"), [(ours, "t2"), (litert, "float32")])
def test_walk(peer, variant):
    case = Case(Kind.WALK, 1, 512, 512, walk_bytes=48 << 20)
    subject = peer.prepare(case, variant, 1)
    assert subject.products * subject.weight_bytes * 2 >= case.walk_bytes  # in two files
    subject.run()
    assert 0 < subject.error < 0.05


def test_worker(tmp_path):
    case = cases.SMALL
    process = worker.Worker("ours", tmp_path / "log")
    try:
        assert "interpreter" in process.describe()
        answer = process.prepare(case, Contender("ours", "t2"), 1, 1e-4)
        assert answer["weight_bytes"] == 64 * 16 + 64 * 4
        assert process.time(answer["id"]) > 0
        process.release([answer["id"]])
        with pytest.raises(NotMeasured, match="t3"):
            process.prepare(case, Contender("ours", "t3"), 1, 1e-4)
        with pytest.raises(NotMeasured, match="died: status 1"):
            process.time(answer["id"])  # released: an error of ours ends the process
        assert process.time(process.prepare(case, Contender("ours", "b1"), 1, 1e-4)["id"]) > 0
    finally:
        process.close()
