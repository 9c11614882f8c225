"""`native/jotd_native.pyi` is the module's contract: neither may have what the other lacks."""

from __future__ import annotations

import ast
import inspect
import types
from pathlib import Path

import pytest

from tests.peers import ROOT, require_native

PYI = ROOT / "native" / "jotd_native.pyi"


@pytest.fixture(autouse=True)
def native() -> types.ModuleType:
    require_native()
    import jotd_native

    return jotd_native


def _contract(path: Path) -> tuple[dict[str, ast.AST], dict[str, dict[str, ast.AST]]]:
    """Top-level names, and the members of classes, of a stub."""
    top: dict[str, ast.AST] = {}
    classes: dict[str, dict[str, ast.AST]] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            top[node.name] = node
            members = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            classes[node.name] = {member.name: member for member in members}
        elif isinstance(node, ast.FunctionDef):
            top[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name)
            top[node.target.id] = node
    return top, classes


def test_the_module_has_what_its_stub_says(native: types.ModuleType) -> None:
    top, classes = _contract(PYI)
    public = {n for n in vars(native) if not n.startswith("_") or n == "__version__"}
    # PyO3 puts the shared object into a package of the same name.
    assert public - {"jotd_native"} == set(top)
    for name, members in classes.items():
        found = getattr(native, name)
        own = {n for n in vars(found) if not n.startswith("_") or n == "__new__"}
        assert own - {"__new__"} == set(members) - {"__new__"}, name
        for member, node in members.items():
            if member == "__new__":
                continue
            assert isinstance(node, ast.FunctionDef)
            is_property = any(isinstance(d, ast.Name) for d in node.decorator_list)
            assert inspect.isdatadescriptor(vars(found)[member]) == is_property, member


def test_parameters_have_the_names_and_defaults_of_the_stub(native: types.ModuleType) -> None:
    top, classes = _contract(PYI)
    every = [(getattr(native, n), node) for n, node in top.items()]
    for name, members in classes.items():
        found = getattr(native, name)
        every += [(found if n == "__new__" else vars(found)[n], m) for n, m in members.items()]
    checked = 0
    for thing, node in every:
        if not isinstance(node, ast.FunctionDef) or inspect.isdatadescriptor(thing):
            continue
        signature = inspect.signature(thing)
        wanted = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
        assert set(signature.parameters) - {"self"} == wanted, node.name
        defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        for argument, default in defaults:
            parameter = signature.parameters[argument.arg]
            if default is None:
                assert parameter.default is inspect.Parameter.empty
            elif parameter.default is not ...:
                # PyO3 shows an expression that is not a literal as an ellipsis.
                assert parameter.default == ast.literal_eval(default), argument.arg
        checked += 1
    assert checked > 15
