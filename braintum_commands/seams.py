"""A way into nnU-Net where it leaves no other: names of its modules that mean something else within a block.

Some of nnU-Net's methods are long, and call classes and functions by the names of their module. Where no hook, argument
or subclass reaches these, the choice is to copy the method, and to miss whatever nnU-Net changes in it, or this. Who
uses it says why there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from types import ModuleType
from typing import Any

__all__ = ["replaced"]

_lock = Lock()
_meanings: dict[tuple[ModuleType, str], list[Any]] = {}
"""What a name means without any block, then in each block that is under way; the last one counts."""


@contextmanager
def replaced(module: ModuleType, **stand_ins: Any) -> Iterator[None]:
    """Within the block, names of a module mean something else; afterwards, also after an error, what they did before.

    For the whole process: blocks may be nested, and overlap in several threads, which then have to mean the same.

    Args:
        module: one of nnU-Net's.
        **stand_ins: by the name that they take the place of.

    Raises:
        AttributeError: the module has no such name, so nnU-Net has changed; nothing is replaced then.
    """
    if missing := [name for name in stand_ins if not hasattr(module, name)]:
        raise AttributeError(f"{module.__name__} has no {', '.join(missing)}: braintum does not know this nnU-Net")
    with _lock:
        for name, stand_in in stand_ins.items():
            _meanings.setdefault((module, name), [getattr(module, name)]).append(stand_in)
            setattr(module, name, stand_in)
    try:
        yield
    finally:
        with _lock:
            for name, stand_in in stand_ins.items():
                meanings = _meanings[module, name]
                meanings.remove(stand_in)
                setattr(module, name, meanings[-1])
                if len(meanings) == 1:
                    del _meanings[module, name]
