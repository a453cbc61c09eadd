"""The compiled CPU path of the event engine; all else stands in pyproject.toml."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "skiprnn/engines/native.cpp"
DIGEST = hashlib.sha256((Path(__file__).parent / SOURCE).read_bytes()).hexdigest()[:16]  # as compiled.py has it

setup(
    ext_modules=[
        Extension(
            "skiprnn._native",
            [SOURCE],
            language="c++",
            optional=True,  # left out, with a warning, where it cannot be built
            define_macros=[("SOURCE", f'"{DIGEST}"')],
            extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-Wno-psabi"],
            extra_link_args=["-fopenmp"],
        )
    ]
)
