"""Builds the native parts with CMake (the only build definition of them) and makes the wheel.

LAYERED_SGLANG_NATIVE chooses what is built:
  auto  (default) what this machine can: CUDA with nvcc, else CPU with a C++ compiler, else Python
  cuda  CPU and CUDA operators, or fail
  cpu   CPU operators only, or fail
  0     pure Python
MAX_JOBS limits the parallel compile jobs. The build log's line "layered_sglang: ..." says which
of them it became; a native build that fails is an error, never a silent fallback.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "python" / "layered_sglang"
CMAKE_CUDA_OPTION = {"auto": "AUTO", "cuda": "ON", "cpu": "OFF"}


def find_tool(name: str) -> str | None:
    """A build tool: beside this Python first (where pip puts it), then on PATH."""
    beside_python = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside_python or shutil.which(name)


def missing_for_native() -> str:
    """What a native build lacks on this machine, or an empty string."""
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler.split()[0]) for compiler in compilers):
        return f"no C++ compiler ({', '.join(compilers)})"
    for tool in ("cmake", "ninja"):
        if find_tool(tool) is None:
            return f"no {tool}"
    for module in ("torch", "pybind11"):
        if importlib.util.find_spec(module) is None:
            return f"no Python package {module}"
    return ""


def choose_native() -> str:
    """The chosen LAYERED_SGLANG_NATIVE, with auto resolved to "0" where nothing can be built."""
    choice = os.environ.get("LAYERED_SGLANG_NATIVE", "auto")
    if choice not in (*CMAKE_CUDA_OPTION, "0"):
        sys.exit(f'LAYERED_SGLANG_NATIVE: expected auto, cuda, cpu or 0, got "{choice}"')
    if choice == "0":
        print("layered_sglang: pure Python, LAYERED_SGLANG_NATIVE=0")
        return choice
    missing = missing_for_native()
    if missing and choice == "auto":
        print(f"layered_sglang: pure Python, {missing}")
        return "0"
    if missing:
        sys.exit(f"LAYERED_SGLANG_NATIVE={choice}, but there is {missing}")
    return choice


class CMakeBuild(build_ext):
    """Runs CMake and installs its results beside the package's Python modules."""

    def run(self) -> None:
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{NATIVE}"
        cmake = find_tool("cmake")
        configure = [
            cmake,
            *("-G", "Ninja", "-S", ROOT, "-B", build_dir),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DLAYERED_SGLANG_CUDA={CMAKE_CUDA_OPTION[NATIVE]}",
        ]
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run(configure, check=True)
        subprocess.run(
            [cmake, "--build", build_dir, *(["-j", jobs] if jobs else [])],
            check=True,
        )
        subprocess.run([cmake, "--install", build_dir, "--prefix", self._target()], check=True)

    def _target(self) -> Path:
        """The package folder that is being filled: the source tree's for an editable install."""
        in_tree = self.inplace or self.editable_mode
        return PACKAGE if in_tree else Path(self.build_lib) / "layered_sglang"

    def get_outputs(self) -> list[str]:
        target = self._target()
        return [str(path) for path in (*target.glob("_host.*"), *target.glob("lib/*.so"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


NATIVE = choose_native()
if NATIVE == "0":
    for stale in PACKAGE.glob("lib/*.so"):
        # An editable install runs from the source tree, so it would still load this one.
        print(f"layered_sglang: {stale.relative_to(ROOT)}, of an earlier build, is left out")
    setup()
else:
    # CMake knows the sources; the extension is named so that the wheel gets a platform tag.
    setup(
        ext_modules=[Extension("layered_sglang._host", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
