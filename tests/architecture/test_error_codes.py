"""README names every error code that the code base knows, and its tables name no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Codes that are put together, and what may come of it.
COMPOSED = {
    "f'{what}_name_invalid'": {
        f"{what}_name_invalid" for what in ("alias", "dataset", "key", "model", "tenant")
    },
    "f'{right.value}_not_granted'": {"run_not_granted", "export_not_granted"},
    # What answered was no Darkroom: there is no code to name.
    "f'http_{status}'": {"http_502"},
}


@cache
def modules() -> tuple[ast.Module, ...]:
    return tuple(
        ast.parse(path.read_text())
        for package in ("app", "worker")
        for path in sorted((ROOT / package).rglob("*.py"))
    )


def places_of_code(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The functions that take a code, and at which place; of a method without its self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [each.arg for each in node.args.args if each.arg not in ("self", "cls")]
            if "code" in names:
                yield node.name, names.index("code")


def codes_in(
    tree: ast.Module, places: dict[str, set[int]], constants: dict[str, set[str]]
) -> Iterator[str]:
    """Whatever stands where a code must stand."""
    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        match node:
            case ast.Call(func=function, args=args, keywords=keywords):
                found += [each.value for each in keywords if each.arg == "code"]
                name = function.attr if isinstance(function, ast.Attribute) else None
                name = function.id if isinstance(function, ast.Name) else name
                found += [args[at] for at in places.get(name or "", ()) if at < len(args)]
            case ast.ClassDef(body=body):
                for line in body:
                    match line:
                        case ast.Assign(targets=[ast.Name(id="code"), *_], value=value):
                            found.append(value)
            case ast.Dict(keys=keys, values=values):
                found += [
                    value
                    for key, value in zip(keys, values, strict=True)
                    if isinstance(key, ast.Constant) and key.value == "code"
                ]
            case ast.arguments() as words:
                plain = words.posonlyargs + words.args
                takes = plain[len(plain) - len(words.defaults) :] + words.kwonlyargs
                for word, default in zip(takes, [*words.defaults, *words.kw_defaults], strict=True):
                    if word.arg == "code":
                        found.append(default)
        for each in found:
            yield from read_code(each, constants)


def read_code(value: ast.expr | None, constants: dict[str, set[str]]) -> Iterator[str]:
    match value:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.IfExp(body=first, orelse=second):
            yield from read_code(first, constants)
            yield from read_code(second, constants)
        case ast.Name(id=name):
            yield from constants.get(name, ())
        case ast.JoinedStr():
            yield from COMPOSED[ast.unparse(value)]


def known_codes() -> set[str]:
    """Every error code of the service, the workers and the client."""
    trees = modules()
    places: dict[str, set[int]] = defaultdict(set)
    constants: dict[str, set[str]] = defaultdict(set)
    for tree in trees:
        for name, at in places_of_code(tree):
            places[name].add(at)
        for line in tree.body:
            match line:
                case ast.Assign(
                    targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))
                ) if name.isupper():
                    constants[name].add(text)
    return {code for tree in trees for code in codes_in(tree, places, constants)}


def errors_section() -> str:
    return (ROOT / "README.md").read_text().partition("\n## Errors\n")[2].partition("\n## ")[0]


def test_readme_names_every_error_code() -> None:
    known = known_codes()
    assert len(known) > 150, "the code base is read in another way than it is written"
    named = set(re.findall(r"`([a-z][a-z0-9_]*)`", errors_section()))
    assert sorted(known - named - {"http_502"}) == []


def test_readme_names_no_code_that_nothing_answers() -> None:
    written = {
        node.value
        for tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    composed = set().union(*COMPOSED.values())
    named: set[str] = set()
    for line in errors_section().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) > 1:
            of_status = re.fullmatch(r"\d{3}(, \d{3})*", cells[0])
            named |= set(re.findall(r"`([a-z][a-z0-9_]*)`", cells[1 if of_status else 0]))
    assert len(named) > 100
    assert sorted(named - written - composed - {"darkroom"}) == []
