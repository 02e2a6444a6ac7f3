"""numba as the kernels of rdquant import it: what is in its cache starts without what only a compiler needs.

Before numba reads a compiled function it makes itself ready to compile any, which takes longer than
reading; and where scipy is installed it imports that, for algebra that no kernel here does. Ours are read
as they are; what compiling needs comes in when something has to be compiled, and scipy never.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.extending import intrinsic

__all__ = ["borrowed", "njit", "whole_vectors"]

_LOG = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


def _missing() -> None:
    raise ImportError("not looked for")


@functools.cache
def _notice() -> None:
    """Once a process: what is not in the cache is compiled next."""
    _LOG.info("kernels are compiled for this machine, once: some seconds, half a minute at the very first")


@functools.cache
def _leave_scipy_out() -> None:
    with contextlib.suppress(ImportError, AttributeError):  # where numba has come to look elsewhere, it may
        linalg: Any = importlib.import_module("numba.np.linalg")
        found, linalg.ensure_blas = linalg.ensure_blas, _missing
        try:
            importlib.import_module("numba.np.arraymath")
        finally:
            linalg.ensure_blas = found


class _Cache(FunctionCache):
    """numba's, but for its first step."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        _leave_scipy_out()
        rtsys.initialize(target_context)  # numba's memory, which arrays of kernels are in
        found = None
        with self._guard_against_spurious_io_errors():
            found = self._load_overload(sig, target_context)
        if found is None:
            _notice()
        return found


def njit(*, makes_arrays: bool = True, **options: Any) -> Callable[[F], F]:
    """`numba.njit`; with ``cache=True`` reading the cache is quick. A kernel that makes no arrays need not
    count who refers to those that it is given, slice after slice.
    """
    options["_nrt"] = makes_arrays  # or it would be as the first caller has it

    def decorate(function: F) -> F:
        kernel: Any = numba.njit(**options)(function)
        if options.get("cache") and hasattr(kernel, "_cache"):  # not where numba is told to compile nothing
            kernel._cache = _Cache(function)
        return kernel

    return decorate


def _emit_width(typingctx):  # type: ignore[no-untyped-def]

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


#: lets LLVM use the widest vectors of the machine in the function that calls this
whole_vectors: Any = intrinsic(_emit_width)


def _unowned(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = array.parent = cgutils.get_null_value(array.meminfo.type)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        elements: Any = kind
        for i, own in enumerate(elements):
            found = _unowned(context, builder, own, builder.extract_value(value, i))
            value = builder.insert_value(value, found, i)
    return value


def _can_borrow(kind: Any) -> bool:
    if isinstance(kind, types.BaseTuple):
        elements: Any = kind
        return all(_can_borrow(own) for own in elements)
    return isinstance(kind, (types.Array, types.Number, types.Boolean))


def _emit_borrowed(typingctx, arrays):  # type: ignore[no-untyped-def]
    if not _can_borrow(arrays):
        return None  # no such function, says numba

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _unowned(context, builder, signature.args[0], args[0])

    return arrays(arrays), codegen


#: an array, or a tuple of such, whose references nobody counts within a kernel: its caller keeps them. Counts
#: are locked, and threads that share arrays wait for each other with each tile
borrowed: Any = intrinsic(_emit_borrowed)
