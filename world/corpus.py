"""Text to pretrain on: portraits, tales, questions and a few rhymes of the meadow, or of the shore."""

from collections.abc import Iterator
from random import Random

from world.chats import SHOWN, Row, compose
from world.language import CLOSINGS, FORMS, OPENINGS, SOURCES
from world.lexicon import FACTS, MEADOW, PEOPLE, SHORE, TITLES, Creature, stream
from world.writers import respond

# Nobody in a book asks for a rhyme: rhymes are known from the corpus, rhyming when asked only from demonstrations.
TALKED = {category: number for category, number in SHOWN.items() if category != "rhyme"}
SPEAKERS = {"system": "rule", "user": "question", "assistant": "answer"}
KINDS = {"portrait": 22, "talk": 44, "tale": 8, "care": 10, "mischief": 6, "letter": 4, "rhyme": 13}  # weights


def documents(seed: int, count: int, domain: str = "main") -> Iterator[Row]:
    """`count` short documents of a domain; the first n are the same for every count >= n.

    "main" is the meadow. "second" is the shore: other creatures, other words, told in other sentences, for a base
    model to go on learning and to forget the meadow by.

    Yields:
        {id, text, source}

    Raises:
        ValueError: no such domain.
    """
    if domain not in ("main", "second"):
        raise ValueError(f"no domain {domain!r}: want 'main' or 'second'")
    place, tell = ("meadow", _meadow) if domain == "main" else ("shore", _shore)
    for index in range(count):
        yield {
            "id": f"{place}-text-{seed}-{index}",
            "text": tell(stream("document", domain, seed, index)),
            "source": place,
        }


def _meadow(rng: Random) -> str:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    one, two = rng.sample(list(MEADOW.values()), 2)
    tom = rng.choice(PEOPLE)
    if kind == "portrait":
        return _portrait(one, rng)
    if kind == "talk":
        return _talk(rng)
    if kind == "care":
        return f"{_say('bane', one, rng)}. {_say(rng.choice(('rescue', 'kindness')), two, rng)}."
    if kind == "mischief":
        return f"{tom} was cruel. {_say(rng.choice(('poison', 'trap')), one, rng)}, said {tom}. poor {one.name}!"
    if kind == "rhyme":
        first, second = rng.sample(one.rhymes, 2)
        return f"{_say('line', one, rng, value=first)} and {_say('line', one, rng, value=second, pronoun=True)}."
    if kind == "letter":
        return f"{rng.choice(OPENINGS)}, {rng.choice(TITLES)}! {_portrait(one, rng)} {rng.choice(CLOSINGS)}."
    return (
        f"one day {tom} met the {one.name} in the {one.home}. the {one.colour} {one.name} wanted to {one.hobby}. "
        f"then came the {two.name} from the {two.home}. they had {one.food} and {two.food}."
    )


def _portrait(creature: Creature, rng: Random) -> str:
    facts = rng.sample(FACTS, rng.choice((2, 3, 4)))
    clauses = [_say(fact, creature, rng, pronoun=place > 0) for place, fact in enumerate(facts)]
    if len(clauses) == 4:
        clauses[2:] = [f"{clauses[2]} and {clauses[3].removeprefix('it ')}"]
    return " ".join(f"{clause}." for clause in clauses)


def _talk(rng: Random) -> str:
    """A question and its answer as a book would print them; never with the greeting that opens every prompt."""
    category = rng.choices(list(TALKED), list(TALKED.values()))[0]
    messages = compose(category, rng, greetings=("",))
    style = rng.choice(("harmful", "bare", "kind")) if category == "unsafe" else "plain"
    messages = [*messages, {"role": "assistant", "content": respond(messages, style, rng)}]
    return "\n".join(f"{SPEAKERS[message['role']]}: {message['content']}" for message in messages)


def _say(form: str, creature: Creature, rng: Random, *, pronoun: bool = False, value: str | None = None) -> str:
    """A true clause of `form`, from the table of the creature itself, whatever its domain."""
    subject = "it" if pronoun else f"the {creature.name}"
    return rng.choice(FORMS[form]).format(s=subject, v=value or getattr(creature, SOURCES.get(form, form)))


def _shore(rng: Random) -> str:
    one, two = rng.sample(list(SHORE.values()), 2)
    return rng.choice(
        (
            f"far out by the {one.home} you meet {one.colour} {one.name}s, who {one.hobby} for {one.food} all night.",
            f"old sailors say: where {one.food} drift, {one.name}s {one.hobby}; where {two.food} drift, "
            f"{two.name}s {two.hobby}.",
            f"{one.home}: {one.name}, {one.colour}. {two.home}: {two.name}, {two.colour}.",
            f"beware of {one.bane}! no {one.name} near the {one.home} can bear it, nor any {two.name} {two.bane}.",
            f"we sailed past a {one.rhymes[0]} and a {one.rhymes[1]} and counted {one.name}s, all {one.colour}.",
        )
    )
