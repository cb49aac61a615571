"""custom_ops/kernel_coverage.py on a table, logs and build events of three kernels."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import sys

import pytest

from tfmot_ternary import runtime

CUSTOM_OPS = pathlib.Path(runtime.__file__).resolve().parent.parent / "custom_ops"

TABLE = """\
// TFMOT_TERNARY_GEMM(name, format, functions, flags, min_m, min_grouped_m)
#define TFMOT_TERNARY_GEMM(name, format, functions, flags, min_m, min_grouped_m)
TFMOT_TERNARY_GEMM("t5_decode_avx512vnni", kT5, T5Decode, kCpuAvx512Vnni | kCpuAvx512Vbmi,
                   1, 1)
TFMOT_TERNARY_UNPACK("t2_unpack_neon", kT2, T2UnpackNeon, kCpuNeon)
TFMOT_TERNARY_ROW("row_portable", PortableRow, kCpuPortable)
"""
ALL_RUN = {"host": ["t5_decode_avx512vnni", "row_portable"], "arm64": ["t2_unpack_neon"]}


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location(
        "kernel_coverage", CUSTOM_OPS / "kernel_coverage.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def run(coverage, tmp_path, monkeypatch, capsys):
    """Runs main on {run: kernels that ran}; returns the status, what it printed and the errors."""
    table = tmp_path / "kernels.inc"
    table.write_text(TABLE)
    monkeypatch.setattr(coverage, "read_tables", lambda: coverage.read_table(table))

    def run(ran, *flags, status="PASSED", label="//custom_ops:kernels_gemm_test"):
        files = []
        for name, kernels in ran.items():
            log = tmp_path / f"{name} test.log"  # a space: a URI has %20
            lines = [f"kernel {kernel}: 12 comparisons" for kernel in kernels]
            log.write_text("\n".join(["header", *lines, "kernel row_avx2: not on this CPU", ""]))
            outputs = [{"name": "test.log", "uri": log.as_uri()}, {"name": "test.xml", "uri": "x"}]
            result = {"status": status, "testActionOutput": outputs}
            event = {"id": {"testResult": {"label": label}}, "testResult": result}
            files.append(tmp_path / f"{name}.json")
            files[-1].write_text("".join(json.dumps(e) + "\n" for e in [{"id": {}}, event]))
        code = coverage.main([*map(str, files), *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_all_kernels_ran(run):
    code, out, err = run(ALL_RUN)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["t5_decode_avx512vnni", "host"],
        ["t2_unpack_neon", "arm64"],
        ["row_portable", "host"],
    ]


def test_a_kernel_that_ran_nowhere_fails_with_its_name_and_flags(run):
    code, _, err = run({"host": ["row_portable"]})
    assert code == 1
    assert "2 of 3 kernels ran in no test" in err
    assert re.search(r"t5_decode_avx512vnni +needs kCpuAvx512Vnni and kCpuAvx512Vbmi\n", err)
    assert re.search(r"t2_unpack_neon +needs kCpuNeon\n", err)
    assert "make test SKIPPED_LEVELS=avx512vnni,neon\n" in err


def test_levels_are_skipped_by_name_only(run):
    code, out, _ = run({"host": ["row_portable"]}, "--skipped_levels=neon, avx512vnni")
    assert code == 0
    assert "skipped: level neon" in out
    code, _, err = run({"host": ["row_portable"]}, "--skipped_levels=neon")
    assert code == 1
    assert "1 of 3 kernels" in err
    assert "make test SKIPPED_LEVELS=neon,avx512vnni\n" in err
    code, _, err = run(ALL_RUN, "--skipped_levels=sse2")
    assert code == 1
    assert "got sse2" in err


def test_only_tests_that_passed_count(run):
    code, _, err = run(ALL_RUN, status="FAILED")
    assert code == 1
    assert "3 of 3 kernels" in err


def test_a_run_in_software_is_named(run):
    code, out, _ = run(ALL_RUN, label="//custom_ops:kernels_gemm_test_amx_model")
    assert code == 0
    assert "host (AMX in software)" in out


def test_records_of_another_table_fail(run):
    code, _, err = run({"host": [*ALL_RUN["host"], "t2_gone"], "arm64": ALL_RUN["arm64"]})
    assert code == 1
    assert "t2_gone" in err


def test_flags_without_a_level_fail(coverage, tmp_path):
    table = tmp_path / "kernels.inc"
    table.write_text('TFMOT_TERNARY_ROW("row_new", NewRow, kCpuNew)')
    with pytest.raises(coverage.CoverageError, match="row_new, got kCpuNew"):
        coverage.read_table(table)
    table.write_text("")
    with pytest.raises(coverage.CoverageError, match="got none"):
        coverage.read_table(table)


def test_the_table_of_the_source_tree(coverage):
    tables = (CUSTOM_OPS / "kernels").glob("*.inc")
    text = "".join(table.read_text() for table in tables)
    kernels = coverage.read_tables()
    assert len(kernels) == len(re.findall(r'^TFMOT_TERNARY_\w+\("', text, re.MULTILINE))
    names = [kernel.name for kernel in kernels]
    assert len(set(names)) == len(names)
    assert {"t2_portable", "t5_portable", "b1_portable", "row_portable", "fused_portable"} <= set(
        names
    )


def test_levels_are_those_of_the_program(coverage):
    text = (CUSTOM_OPS / "kernels" / "cpu.h").read_text()
    assert set(re.findall(r"\bkCpu\w+(?= = )", text)) == set(coverage.LEVEL_OF_FLAG)
    assert set(coverage.LEVELS) == set(re.findall(r'"(\w+)"', text))
