"""Every small way to break a Python file: one change of its syntax tree at a time.

A comparison turned or its edge moved, an operator exchanged, a sign or a `not` dropped, a mask dropped (`torch.where(m, a, b)`
becomes `a`), the first two arguments swapped, a constant one higher, a clamp, a cast or a keyword left out, a branch negated,
a `raise` left out.
"""

import ast
import hashlib
from collections import Counter
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
    function: str  # around it: "gae", "Config.__post_init__"; "" at the module's level
    line: int
    change: str
    number: int  # of this change among equal ones in this function, from 1
    source: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}\n{self.source}".encode()).hexdigest()[:16]

    @property
    def place(self) -> str:
        """A name that outlives changes elsewhere in the file."""
        return f"{self.file}.{self.function}: {self.change}" + (f" ({self.number})" if self.number > 1 else "")


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of one file that differs from it, each once. Docstrings are left out: they change no outcome."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    parts = [ast.unparse(statement) for statement in tree.body]
    seen = {"\n".join(parts)}
    equal: Counter[tuple[str, str]] = Counter()
    for spot in _spots(tree):
        for change, replacement in _changes(spot.node):
            _put(spot, replacement)
            whole = tree.body[spot.statement]
            source = "\n".join([*parts[: spot.statement], ast.unparse(whole), *parts[spot.statement + 1 :]])
            _put(spot, spot.node)
            if source not in seen:
                seen.add(source)
                equal[spot.function, change] += 1
                line = getattr(spot.node, "lineno", 0)
                yield Mutant(path.stem, spot.function, line, change, equal[spot.function, change], source)


@dataclass(frozen=True)
class _Spot:
    """A node worth changing and where it hangs."""

    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None  # in the field's list
    statement: int  # of the module
    function: str


def _put(spot: _Spot, node: ast.AST) -> None:
    if spot.index is None:
        setattr(spot.parent, spot.field, node)
    else:
        getattr(spot.parent, spot.field)[spot.index] = node


def _spots(tree: ast.Module) -> list[_Spot]:
    """In a fixed order: what functions do and module constants, not declarations and types."""
    found: list[_Spot] = []

    def visit(spot: _Spot) -> None:
        found.append(spot)
        if isinstance(spot.node, ast.Raise):  # that it is raised counts, the words are for people
            return
        for name, value in ast.iter_fields(spot.node):
            if name in ("annotation", "returns", "decorator_list", "bases"):
                continue
            if isinstance(value, ast.AST):
                visit(_Spot(value, spot.node, name, None, spot.statement, spot.function))
            elif isinstance(value, list):
                for i, child in enumerate(value):
                    if isinstance(child, ast.AST):
                        visit(_Spot(child, spot.node, name, i, spot.statement, spot.function))

    for number, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef):
            visit(_Spot(node, tree, "body", number, number, node.name))
        elif isinstance(node, ast.ClassDef):
            for i, item in enumerate(node.body):
                if isinstance(item, ast.FunctionDef):
                    visit(_Spot(item, node, "body", i, number, f"{node.name}.{item.name}"))
        elif (
            isinstance(node, ast.Assign) and not {t.id for t in node.targets if isinstance(t, ast.Name)} & DECLARATIONS
        ):
            visit(_Spot(node.value, node, "value", None, number, ""))
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
