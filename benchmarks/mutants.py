"""Every small way to break a Python file: one change of its syntax tree at a time.

A comparison turned or its edge moved, an operator exchanged, a sign or a `not` dropped, a mask dropped (`torch.where(m, a, b)`
becomes `a`), the first two arguments swapped, a constant one higher, a clamp, a cast or a keyword left out, a branch negated,
a `raise` left out.
"""

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DECLARATIONS = {"PRESETS", "LOOP", "columns", "forwards", "loop", "unit", "baseline", "least_k", "HOOKS"}

COMPARE: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
BINARY: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.MatMult: ast.Sub,
}
COMMUTATIVE = {"max", "min", "torch.maximum", "torch.equal"}
DROPPED = {"clamp", "float", "abs", "square", "sqrt", "log", "exp", "detach", "masked_fill", "clip", "long", "amax"}


@dataclass(frozen=True)
class Mutant:
    """One change: where, what, and the changed source."""

    file: str  # stem
    line: int
    change: str
    source: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}\n{self.source}".encode()).hexdigest()[:16]


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of one file that differs from it, each once."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    seen = {ast.unparse(tree)}
    for place, node in enumerate(_walk(tree)):
        for change, replacement in _changes(node):
            other = copy.deepcopy(tree)
            target = _walk(other)[place]
            _replace(other, target, replacement)
            source = ast.unparse(ast.fix_missing_locations(other))
            if source not in seen:
                seen.add(source)
                yield Mutant(path.stem, getattr(node, "lineno", 0), change, source)


def _walk(tree: ast.Module) -> list[ast.AST]:
    """Nodes worth changing, in a fixed order: what functions do and module constants, not declarations and types."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        found.append(node)
        if isinstance(node, ast.Raise):  # that it is raised counts, the words are for people
            return
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            visit(node)
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    visit(item)
        elif (
            isinstance(node, ast.Assign) and not {t.id for t in node.targets if isinstance(t, ast.Name)} & DECLARATIONS
        ):
            visit(node.value)
    return found


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(what, new node) for one node."""
    text = ast.unparse(node).split("\n")[0][:70] if isinstance(node, ast.expr | ast.stmt) else ""
    if isinstance(node, ast.Compare):
        for i in range(len(node.ops)):
            for operator in COMPARE[type(node.ops[i])]:
                new = ast.Compare(node.left, [*node.ops[:i], operator(), *node.ops[i + 1 :]], node.comparators)
                yield f"{text} -> {ast.unparse(new)}", new
    elif isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        yield f"{text}: {type(node.op).__name__} exchanged", ast.BinOp(node.left, BINARY[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp):
        yield f"{text}: {type(node.op).__name__} dropped", node.operand
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"{text}: and/or exchanged", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} negated", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"constant {node.value} + 1", ast.Constant(node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield f"{text}: branches exchanged", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If):
        yield (
            f"if {ast.unparse(node.test)[:60]}: negated",
            ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse),
        )
    elif isinstance(node, ast.Raise):
        yield "raise left out", ast.Pass()
    elif isinstance(node, ast.AugAssign) and type(node.op) in BINARY:
        yield f"{text}: operator exchanged", ast.AugAssign(node.target, BINARY[type(node.op)](), node.value)
    elif isinstance(node, ast.Call):
        yield from _call_changes(node, text)


def _call_changes(node: ast.Call, text: str) -> Iterator[tuple[str, ast.AST]]:
    function = ast.unparse(node.func)
    if (
        len(node.args) >= 2
        and function not in COMMUTATIVE
        and not any(isinstance(arg, ast.Starred) for arg in node.args[:2])
    ):
        swapped = ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
        yield f"{text}: arguments swapped", swapped
    if function == "torch.where" and len(node.args) == 3:
        yield f"{text}: mask dropped", node.args[1]
    if isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
        yield f"{text}: .{node.func.attr} left out", node.func.value
    for i, keyword in enumerate(node.keywords):
        if keyword.arg:
            rest = [*node.keywords[:i], *node.keywords[i + 1 :]]
            yield f"{text}: {keyword.arg}= left out", ast.Call(node.func, node.args, rest)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                return
            if isinstance(value, list):
                for i, child in enumerate(value):
                    if child is old:
                        value[i] = new
                        return
