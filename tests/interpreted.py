"""Triton's interpreter in less than half of its time, where it computes and refuses what it did."""

import functools
import inspect

import numpy as np
from triton.runtime import interpreter

tl, semantic = interpreter.tl, interpreter.interpreter_semantic


def quicken() -> None:
    """Do not look through the language anew at each call of a function, nor check for overflows in its own terms."""
    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "_get_np_dtype")):
        return  # another version of Triton
    original = interpreter._patch_lang

    @functools.cache
    def languages(fn):
        return [found for found in fn.__globals__.values() if inspect.ismodule(found) and found in (tl, tl.core)]

    def patch_once(fn):
        if any(tl.core.is_builtin(language.load) for language in languages(fn)):
            return original(fn)
        return interpreter._LangPatchScope()  # the kernel that calls this function has done it

    def refuse_overflow(a, b, operation):
        bits = a.type.scalar.int_bitwidth
        if bits >= 64:
            return
        compute = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__]
        exact = compute(a.handle.data.astype(np.int64), b.handle.data.astype(np.int64))
        least, most = a.type.scalar.get_int_min_value(), a.type.scalar.get_int_max_value()
        assert least <= exact.min() and exact.max() <= most, f"int{bits} overflow detected for {operation.__name__}"  # noqa: PT018

    of_scalar = functools.cache(interpreter._get_np_dtype)

    def numpy_type(of):
        return np.dtype(np.uint64) if of.scalar.is_ptr() else of_scalar(of.scalar)

    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = numpy_type
    semantic.binary_op_sanitize_overflow_impl = refuse_overflow
