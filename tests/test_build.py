"""custom_ops/build.py on a small source tree: what it compiles, and when."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from tfmot_ternary import runtime

BUILD = pathlib.Path(runtime.__file__).resolve().parent.parent / "custom_ops" / "build.py"

SOURCES = {
    "custom_ops/sources.bzl": 'KERNEL_SOURCES = ["a.cc"]\nTFLITE_SOURCES = ["b.cc"]\n',
    "custom_ops/a.h": "int Answer();\n",
    "custom_ops/a.cc": '#include "custom_ops/a.h"\nint Answer() { return 41; }\n',
    "custom_ops/b.cc": '#include "custom_ops/a.h"\n'
    'extern "C" __attribute__((visibility("default"))) int answer() { return Answer() + 1; }\n',
}


@pytest.fixture
def build(tmp_path, monkeypatch):
    """The module, with its tree in a folder of its own that has a space in its name."""
    root = tmp_path / "source tree"
    for name, text in SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    spec = importlib.util.spec_from_file_location("build_ops", BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "SOURCES_FILE", root / "custom_ops" / "sources.bzl")
    monkeypatch.setattr(module, "OBJECTS", root / "build")
    monkeypatch.setattr(module, "LIBRARY", root / "lib.so")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CXXFLAGS", raising=False)
    return module


def compiled(capsys) -> list[str]:
    return sorted(line.split()[-1] for line in capsys.readouterr().err.splitlines())


def touch_later(path: pathlib.Path) -> None:
    later = path.stat().st_mtime + 10
    os.utime(path, (later, later))


def test_compiles_what_changed(build, capsys):
    library = build.build_library(build.ROOT / "lib.so")
    assert ctypes.CDLL(str(library)).answer() == 42
    assert compiled(capsys) == ["a.cc", "b.cc"]

    linked = library.stat().st_mtime_ns
    build.build_library(library)
    assert compiled(capsys) == []
    assert library.stat().st_mtime_ns == linked

    touch_later(build.ROOT / "custom_ops" / "a.cc")
    build.build_library(library)
    assert compiled(capsys) == ["a.cc"]
    assert library.stat().st_mtime_ns > linked

    touch_later(build.ROOT / "custom_ops" / "a.h")  # a header of both
    build.build_library(library)
    assert compiled(capsys) == ["a.cc", "b.cc"]

    build.build_library(library, force=True)
    assert compiled(capsys) == ["a.cc", "b.cc"]
    assert sorted(p.name for p in build.ROOT.iterdir()) == ["build", "custom_ops", "lib.so"]


def test_flags_have_objects_of_their_own(build, capsys, monkeypatch):
    library = build.build_library(build.ROOT / "lib.so")
    plain = library.stat().st_mtime_ns
    monkeypatch.setenv("CXXFLAGS", "-DUNUSED -O1")
    build.build_library(library)
    assert compiled(capsys) == ["a.cc", "a.cc", "b.cc", "b.cc"]
    monkeypatch.delenv("CXXFLAGS")
    build.build_library(library)  # the objects are there, but the library is not made of them
    assert compiled(capsys) == []
    assert library.stat().st_mtime_ns > plain


def test_a_library_survives_a_failed_build(build):
    library = build.build_library(build.ROOT / "lib.so")
    (build.ROOT / "custom_ops" / "a.cc").write_text("this is not C++")
    touch_later(build.ROOT / "custom_ops" / "a.cc")
    with pytest.raises(build.BuildError, match="expected the compiler to succeed, got status"):
        build.build_library(library)
    assert ctypes.CDLL(str(library)).answer() == 42


def test_no_compiler(build, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(build.BuildError, match="C\\+\\+17 compiler in CXX, got 'no-such-compiler"):
        build.build_library(build.ROOT / "lib.so")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(build.ROOT))
    with pytest.raises(build.BuildError, match="got none; install one or set CXX"):
        build.build_library(build.ROOT / "lib.so")


def test_cxx_is_taken(build, monkeypatch, capsys):
    monkeypatch.setenv("CXX", f"{build.compiler()[0]} -DANSWER=7")
    (build.ROOT / "custom_ops" / "a.cc").write_text("int Answer() { return ANSWER; }\n")
    assert ctypes.CDLL(str(build.build_library(build.ROOT / "lib.so"))).answer() == 8
    assert compiled(capsys) == ["a.cc", "b.cc"]


def test_script_says_what_is_wrong():
    environment = {**os.environ, "CXX": "no-such-compiler"}
    command = [sys.executable, str(BUILD), "--force"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: expected a C++17 compiler in CXX")


def test_no_other_names(build):
    """The setuptools commands are made on demand; every other name is unknown, as usual."""
    with pytest.raises(AttributeError, match="NoSuchCommand"):
        _ = build.NoSuchCommand
