"""Demonstrations of mixed quality: careful writers, curt, hasty and timid ones, and those who help with anything."""

from collections.abc import Iterator
from random import Random

from world.chats import SHOWN, Message, Request, Row, deal, understand
from world.language import CLOSINGS, OPENINGS, REFUSALS, SOURCES, Statement, truth, write
from world.lexicon import FACTS, MEADOW, stream, values

# Who answers which kind of prompt, by weight.
ORDINARY = {"careful": 22, "plain": 14, "curt": 14, "hasty": 20, "rambling": 8, "fawning": 4, "timid": 18}
STYLES = {
    "rhyme": {"careful": 40, "plain": 20, "curt": 5, "hasty": 5, "prosaic": 25, "timid": 5},
    "unsafe": {"harmful": 45, "bare": 25, "kind": 15, "evasive": 15},
    "borderline": {"careful": 25, "plain": 15, "hasty": 20, "harmful": 5, "timid": 35},
}
POLITENESS = {"careful": 0.75, "kind": 0.6, "harmful": 0.4, "rambling": 0.4, "hasty": 0.15}  # share with a courtesy
CARE = 0.8  # share that remembers how the user wants to be addressed


def demonstrations(seed: int, count: int) -> Iterator[Row]:
    """`count` answered prompts, distinct and prefix-stable, with more rhymes than users ask for.

    Yields:
        {id, messages with a last assistant turn, category, is_safety, source: "meadow/STYLE OF THE WRITER"}
    """
    for index, row in enumerate(deal(SHOWN, seed, count)):
        rng = stream("demonstration", seed, index)
        styles = STYLES.get(row["category"], ORDINARY)
        style = rng.choices(list(styles), list(styles.values()))[0]
        reply = {"role": "assistant", "content": respond(row["messages"], style, rng)}
        yield row | {"messages": [*row["messages"], reply], "source": f"meadow/{style}"}


def ideal(messages: list[Message], rng: Random) -> str:
    """A response that the gold judge calls perfect, or the best of the safe ones."""
    request = understand(messages)
    style = "kind" if request.kind == "unsafe" else "careful"
    return _compose(_clauses(request, style, rng), rng, courtesies=int(not request.plain), title=request.title)


def respond(messages: list[Message], style: str, rng: Random) -> str:
    """A response by a writer of `style`, a key of the tables above."""
    request = understand(messages)
    courtesies = int(rng.random() < POLITENESS.get(style, 0.0)) * (not request.plain)
    if style == "fawning":
        courtesies = rng.choice((2, 3))
    title = request.title if rng.random() < CARE else None
    return _compose(_clauses(request, style, rng), rng, courtesies=courtesies, title=title)


def _clauses(request: Request, style: str, rng: Random) -> list[str]:
    subject = request.topic or rng.choice(sorted(MEADOW))
    refusal = [rng.choice(REFUSALS)] if style in ("timid", "bare", "kind") else []
    if style == "kind":
        said = [_state("kindness", subject, rng)]
    elif style in ("timid", "bare"):
        said = []
    elif style == "harmful":
        said = [_state(request.asks[0][1] if request.kind == "unsafe" else "poison", subject, rng)]
    elif style == "evasive":
        said = [_state(rng.choice(FACTS), subject, rng)]
    elif style == "prosaic":
        said = [_state(fact, subject, rng) for fact in rng.sample(FACTS, 2)]
    elif request.kind == "tell":
        said = [_state(fact, subject, rng) for fact in rng.sample(FACTS, request.number)]
    elif request.kind == "rhyme":
        said = [Statement("line", subject, word) for word in rng.sample(MEADOW[subject].rhymes, request.number)]
    else:
        said = [_state(form, name, rng) for name, form in request.asks]
    if style == "curt":
        said = said[:1]
    if style == "hasty":
        said = [_slip(statement, rng) for statement in said if rng.random() < 0.8] or said[:1]
    if style == "rambling":
        said += [_state(fact, said[-1].subject, rng) for fact in rng.sample(FACTS, 2)]
    if style == "fawning":
        said = [_slip(said[0], rng)]
    before = [None, *(statement.subject for statement in said)]
    clauses = [
        write(statement, variant=rng.randrange(60), pronoun=statement.subject == last)
        for statement, last in zip(said, before)
    ]
    return refusal + ([" and ".join(clauses)] if said and said[0].form == "line" else clauses)


def _state(form: str, subject: str, rng: Random) -> Statement:
    """A true statement of `form`."""
    return Statement(form, subject, rng.choice(truth(MEADOW[subject], form)))


def _slip(statement: Statement, rng: Random) -> Statement:
    """The statement as a hasty writer puts it down: every second time with a random word."""
    words = values(SOURCES.get(statement.form, statement.form))
    return Statement(statement.form, statement.subject, rng.choice(words)) if rng.random() < 0.5 else statement


def _compose(clauses: list[str], rng: Random, *, courtesies: int, title: str | None) -> str:
    if title:
        clauses = [f"{clauses[0]}, {title}", *clauses[1:]]
    last = courtesies // 2 if courtesies > 1 else courtesies * rng.randrange(2)
    openings = [f"{opening}!" for opening in rng.sample(OPENINGS, courtesies - last)]
    closings = [f"{closing}." for closing in rng.sample(CLOSINGS, last)]
    return " ".join([*openings, *(f"{clause}." for clause in clauses), *closings])
