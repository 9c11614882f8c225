"""`native/jotd_native.pyi` is the module's contract: neither may have what the other lacks."""

from __future__ import annotations

import ast
import inspect
import itertools
import types

import pytest

from tests.peers import ROOT, require_native

PYI = ROOT / "native" / "jotd_native.pyi"


@pytest.fixture(autouse=True)
def native() -> types.ModuleType:
    require_native()
    import jotd_native

    return jotd_native


def _contract(text: str) -> tuple[dict[str, ast.AST], dict[str, dict[str, ast.AST]]]:
    """Top-level names, and the members of classes, of a stub."""
    top: dict[str, ast.AST] = {}
    classes: dict[str, dict[str, ast.AST]] = {}
    for node in ast.parse(text).body:
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


def _check_names(native: types.ModuleType, text: str) -> None:
    top, classes = _contract(text)
    public = {n for n in vars(native) if not n.startswith("_") or n == "__version__"}
    assert public == set(top)
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


def _check_parameters(native: types.ModuleType, text: str) -> None:
    top, classes = _contract(text)
    every = [(getattr(native, n), node) for n, node in top.items()]
    for name, members in classes.items():
        found = getattr(native, name)
        every += [(found if n == "__new__" else vars(found)[n], m) for n, m in members.items()]
    checked = 0
    for thing, node in every:
        if not isinstance(node, ast.FunctionDef) or inspect.isdatadescriptor(thing):
            continue
        signature = inspect.signature(thing)
        found = [p for p in signature.parameters.values() if p.name != "self"]
        named = [p.name for p in found if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert named == [a.arg for a in node.args.args if a.arg not in ("self", "cls")], node.name
        only = {p.name for p in found if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert only == {a.arg for a in node.args.kwonlyargs}, node.name
        positional = node.args.args[::-1], node.args.defaults[::-1]
        defaults = [
            *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
            *itertools.zip_longest(*positional),
        ]
        for argument, default in defaults:
            if argument.arg in ("self", "cls"):
                continue
            parameter = signature.parameters[argument.arg]
            if default is None:
                assert parameter.default is inspect.Parameter.empty
            elif parameter.default is not ...:
                # PyO3 shows an expression that is not a literal as an ellipsis.
                assert parameter.default == ast.literal_eval(default), argument.arg
        checked += 1
    assert checked > 15


def test_the_module_is_what_its_stub_says(native: types.ModuleType) -> None:
    _check_names(native, PYI.read_text())
    _check_parameters(native, PYI.read_text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DRAINED: Final[int]\n", "DRIED: Final[int]\n"),
        ("    def flush(self) -> None:\n", "    def flash(self) -> None:\n"),
        ("    @property\n    def ports(", "    def ports("),
        ("    def fileno(", "    @property\n    def fileno("),
        ("    def finish(self, response: bytes)", "    def finish(self, answer: bytes)"),
        (
            "    def fail(self, code: int, message: str)",
            "    def fail(self, message: str, code: int)",
        ),
        ("    def close(self, code: int = 0,", "    def close(self, code: int = 1,"),
        ("    def drain(self)", "    def drain(self, grace_s: float)"),
        ("        room_bytes: int = 1048576,\n", "        room_bytes: int = 1048577,\n"),
        ("        request_bytes_max: int,\n", "        request_bytes_max: int = 0,\n"),
        ("        room_bytes: int = 1048576,\n", ""),
        ("@final\nclass Exchange:", "@final\nclass Exchanges:"),
    ],
)
def test_a_stub_that_says_something_else_is_noticed(
    native: types.ModuleType, old: str, new: str
) -> None:
    text = PYI.read_text()
    assert old in text
    text = text.replace(old, new)
    with pytest.raises((AssertionError, AttributeError, KeyError)):
        _check_names(native, text)
        _check_parameters(native, text)
