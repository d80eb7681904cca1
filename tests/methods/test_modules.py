"""A method's name in the package is its constructor, and its module."""

import copy
import functools
import importlib
import inspect
import pickle
import pkgutil
import types

import pytest

from jaxkd import methods
from jaxkd.types import Method

MODULES = [
    module.name
    for module in pkgutil.iter_modules(methods.__path__)
    if inspect.isroutine(
        getattr(importlib.import_module(f"jaxkd.methods.{module.name}"), module.name, 0)
    )
]


@pytest.mark.parametrize("name", MODULES)
def test_a_name_is_the_constructor_and_its_module(name):
    found = getattr(methods, name)
    function = getattr(found, name)
    assert isinstance(found, types.ModuleType)
    assert found is importlib.import_module(f"jaxkd.methods.{name}")
    assert inspect.signature(found) == inspect.signature(function)
    assert inspect.getdoc(found) == inspect.getdoc(function)
    assert methods.METHODS.get(name, function) is function
    assert repr(found).startswith(f"<module 'jaxkd.methods.{name}' from")


def test_both_forms_make_the_same_method():
    import jaxkd.methods.taid as module
    from jaxkd.methods import taid
    from jaxkd.methods.taid import taid as function

    assert module.taid is function
    made = taid(10), function(10), functools.partial(taid, total_steps=10)()
    assert all(isinstance(method, Method) for method in made)
    with pytest.raises(TypeError, match="total_steps"):
        taid(stepz=10)


def test_a_constructor_is_copied_and_pickled_by_its_name():
    assert copy.deepcopy({"method": methods.kd})["method"] is methods.kd
    assert pickle.loads(pickle.dumps(methods.kd)) is methods.kd


def test_what_has_no_module_of_its_own_stays_a_function():
    assert len(MODULES) > 40
    for name in ("fused_kd", "combine", "high_frequency", "paraphrased"):
        assert inspect.isfunction(getattr(methods, name))
