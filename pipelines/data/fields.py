"""Values that came from a file, held against the fields of the dataclass that they are for."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1  # what int64 holds


def check_fields(kind: type, values: Mapping[str, Any]) -> None:
    """Refuse values that ``kind(**values)`` would take without being what its fields say.

    Raises:
        ValueError: one is missing, unknown, or of another type.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"it has the unknown entry {unknown[0]!r:.60}")
    for name, field in known.items():
        if name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"it lacks {name}")
        elif not _is(values[name], hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]))
            raise ValueError(f"{name} must be {wanted}, got {values[name]!r:.60}")


def _is(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is(value, option) for option in inner)
    if origin in (list, tuple, dict):
        items, kind = (value.values(), inner[1]) if isinstance(value, dict) else (value, inner[0])
        return isinstance(value, origin) and all(_is(item, kind) for item in items)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):  # as ``asdict`` leaves it
        check_fields(hint, value)
        return True
    if hint is Any or hint is types.NoneType:
        return hint is Any or value is None
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    wanted = (float, int) if hint is float else hint
    return isinstance(value, wanted) and not (isinstance(value, int) and abs(value) > LARGEST)
