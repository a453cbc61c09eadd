"""The compiled CPU path of the event engine; all else stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "skiprnn._native",
            ["skiprnn/native.cpp"],
            language="c++",
            optional=True,  # left out, with a warning, where it cannot be built
            extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-Wno-psabi"],
            extra_link_args=["-fopenmp"],
        )
    ]
)
