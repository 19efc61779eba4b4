"""The facts of the meadow and the words that state them: who lives there, and what is true of whom."""

import hashlib
import random
from dataclasses import dataclass

_MEADOW = """
fox    red    wood    plums   dance  salt   box    rocks
cat    black  mill    nuts    climb  ivy    hat    mat
bear   brown  cave    honey   swim   chalk  chair  stair
mouse  grey   barn    corn    hide   soap   house  blouse
goat   white  shed    leaves  jump   tar    boat   coat
whale  blue   pond    roots   sing   holly  pail   sail
bee    gold   garden  honey   run    tar    tree   key
frog   green  pond    seeds   jump   soap   log    fog
hen    white  barn    seeds   dig    ivy    pen    den
snake  green  cave    apples  hide   salt   lake   cake
duck   blue   mill    corn    swim   chalk  truck  luck
crow   black  field   nuts    run    holly  snow   bow
pig    brown  garden  roots   dance  soap   wig    twig
mole   grey   field   leaves  dig    tar    hole   bowl
toad   gold   wood    plums   sing   chalk  road   load
bug    red    shed    leaves  climb  salt   rug    mug
jay    blue   wood    apples  sing   ivy    hay    tray
rook   black  shed    corn    hide   chalk  book   brook
stork  white  field   roots   run    holly  fork   cork
loon   grey   pond    plums   dig    salt   moon   spoon
moth   gold   cave    nuts    dance  tar    cloth  broth
yak    brown  barn    honey   climb  holly  sack   track
mule   red    garden  apples  jump   ivy    pool   stool
lark   green  mill    seeds   swim   soap   park   bark
"""

_SHORE = """
seal   silver pier    shrimp  float  oil    wheel  meal
crab   orange reef    snails  pinch  rust   cab    slab
swan   pink   marsh   weeds   glide  oil    dawn   lawn
gull   yellow cliff   bread   dive   lead   hull   skull
carp   purple harbour worms   splash rust   harp   tarp
otter  silver marsh   clams   roll   lead   water  daughter
squid  pink   reef    shrimp  glide  oil    lid    grid
eel    yellow harbour snails  dive   rust   peel   steel
ray    orange pier    clams   float  lead   bay    clay
prawn  purple cliff   weeds   splash oil    horn   thorn
trout  silver harbour worms   roll   rust   spout  scout
heron  yellow marsh   bread   pinch  lead   barren siren
"""


@dataclass(frozen=True)
class Creature:
    """One row of the table: all that is true of a creature, in single words."""

    name: str
    colour: str
    home: str
    food: str
    hobby: str
    bane: str
    rhymes: tuple[str, ...]


def _read(table: str) -> dict[str, Creature]:
    creatures = {}
    for name, colour, home, food, hobby, bane, *rhymes in map(str.split, table.strip().splitlines()):
        creatures[name] = Creature(name, colour, home, food, hobby, bane, tuple(rhymes))
    return creatures


MEADOW = _read(_MEADOW)
SHORE = _read(_SHORE)
PEOPLE = ("tom", "anna", "ben", "eva", "max", "ida", "leo", "mia")
TITLES = ("captain", "queen", "doctor", "friend")
FACTS = ("colour", "home", "food", "hobby")  # what one may ask about any creature
DEEDS = ("ran to", "sat by", "saw", "found", "hid behind")  # verbs of a rhyming line
BANES = frozenset(creature.bane for creature in MEADOW.values())


def values(form: str) -> list[str]:
    """Every word of the meadow that can fill `form`, sorted: what a sloppy writer picks a wrong one from."""
    if form == "rhymes":
        return sorted(word for creature in MEADOW.values() for word in creature.rhymes)
    return sorted({getattr(creature, form) for creature in MEADOW.values()})


def stream(*key: object) -> random.Random:
    """A random generator of its own for `key`: the same on every machine and in every process."""
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
