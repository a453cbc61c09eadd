"""The compiled CPU path of the event engine; all else stands in pyproject.toml."""

import hashlib
import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

SOURCE = "skiprnn/engines/native.cpp"
DIGEST = hashlib.sha256((Path(__file__).parent / SOURCE).read_bytes()).hexdigest()[:16]  # as compiled.py has it
# Set by `make sanitize`: look for reads and writes out of bounds and undefined behaviour.
FLAGS = ["-O1", "-g", "-fsanitize=address,undefined"] if os.environ.get("SKIPRNN_SANITIZE") else ["-O3"]


class BuildWithOrWithoutOpenMP(build_ext):
    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (CompileError, LinkError):  # such as clang's on macOS; it then runs on one core
            ext.extra_compile_args.remove("-fopenmp")
            ext.extra_link_args.remove("-fopenmp")
            super().build_extension(ext)


setup(
    cmdclass={"build_ext": BuildWithOrWithoutOpenMP},
    ext_modules=[
        Extension(
            "skiprnn._native",
            [SOURCE],
            language="c++",
            optional=True,  # left out, with a warning, where it cannot be built
            define_macros=[("SOURCE", f'"{DIGEST}"')],
            extra_compile_args=[*FLAGS, "-std=c++17", "-fopenmp", "-Wno-psabi"],
            extra_link_args=[*FLAGS, "-fopenmp"],
        )
    ],
)
