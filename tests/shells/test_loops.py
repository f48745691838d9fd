"""CPython 3.12 and later lay the jump back of a loop outside of the `try` or `with` that the loop is in, and 3.13 looks
for signals at it. An exception that a signal handler raises there runs no `except`, no `finally` and no `__exit__`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import millpond

LOOPS = (ast.While, ast.For, ast.AsyncFor, ast.ListComp, ast.SetComp, ast.DictComp)


def protected_loops(node: ast.AST, function: str = "", protected: bool = False) -> Iterator[str]:
    """Yield the loops that stand in a `try` or `with` of their own function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from protected_loops(child, child.name)
            continue
        within = protected or (isinstance(node, (ast.Try, ast.With, ast.AsyncWith)) and child in node.body)
        if within and isinstance(child, LOOPS):
            yield f"{function}, line {child.lineno}"
        yield from protected_loops(child, function, within)


def test_no_protection_is_left_by_the_jump_back_of_a_loop() -> None:
    package = Path(millpond.__file__).parent
    files = [*package.glob("*.py"), *package.glob("_core/*.py")]
    assert len(files) > 10
    assert [
        f"{path.name}: {loop}"
        for path in files
        for loop in protected_loops(ast.parse(path.read_text(), filename=str(path)))
    ] == []
    assert list(protected_loops(ast.parse("def f():\n with g:\n  while h: pass"))) == ["f, line 3"]
