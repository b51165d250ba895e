"""Names of nnU-Net's modules that mean something else within a block, and afterwards what they did before."""

from contextlib import ExitStack
from types import ModuleType

import pytest

from braintum.commands.seams import replaced


@pytest.fixture
def module() -> ModuleType:
    module = ModuleType("theirs")
    module.first, module.second = 1, 2  # type: ignore[attr-defined]
    return module


def meanings(module: ModuleType) -> tuple[int, int]:
    return module.first, module.second


def test_also_after_an_error(module: ModuleType) -> None:
    with pytest.raises(KeyError), replaced(module, first=10, second=20):
        assert meanings(module) == (10, 20)
        with replaced(module, second=30):
            assert meanings(module) == (10, 30)
        assert meanings(module) == (10, 20)
        raise KeyError
    assert meanings(module) == (1, 2)


def test_blocks_that_overlap(module: ModuleType) -> None:
    """As in two threads: the first to begin is the first to end."""
    first, second = ExitStack(), ExitStack()
    first.enter_context(replaced(module, first=10))
    second.enter_context(replaced(module, first=10))
    first.close()
    assert meanings(module) == (10, 2)
    second.close()
    assert meanings(module) == (1, 2)


def test_a_name_that_is_gone(module: ModuleType) -> None:
    with (
        pytest.raises(AttributeError, match="theirs has no third: braintum does not know this nnU-Net"),
        replaced(module, first=10, third=30),
    ):
        pass
    assert meanings(module) == (1, 2)
