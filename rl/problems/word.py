"""Short stories about counting things, such as `Ana has 12 pens. Ana buys 5 more. How many pens does Ana have?`."""

import random
from dataclasses import dataclass, field

from deltarl.rl.problems.registry import Draft, family

NAMES = ("Ana", "Ben", "Eva", "Ida", "Jon", "Leo", "Mia", "Sam", "Tom", "Zoe")
THINGS = ("pens", "eggs", "nuts", "cards", "coins", "books", "apples", "stamps")
BOXES = ("bags", "boxes", "packs")

_LARGEST_COUNT = 300


@dataclass
class Story:
    """Who has what, the sentences told so far, and the steps that follow the running count."""

    name: str
    receiver: str
    """Who is given things; someone else than the `rival`, whose count must not depend on gifts."""
    rival: str
    things: str
    count: int
    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def tell(self, sentence: str, operator: str, operand: int, result: int) -> None:
        """Add a sentence and the step it asks for: the running count `operator` the operand."""
        self.sentences.append(sentence)
        self.steps.append(f"{self.count}{operator}{operand}={result}")
        self.count = result


@family("word", levels=range(1, 6))
def word(rng: random.Random, level: int) -> Draft:
    """Level is the number of steps; from level 2 a story may count boxes or share equally, from 3 compare people."""
    while True:
        story = _story(rng, level)
        if story is not None and story.count <= _LARGEST_COUNT:
            return Draft(" ".join(story.sentences), story.count, story.steps)


def _story(rng: random.Random, level: int) -> Story | None:
    """A story of `level` steps, or None if it asks to share what does not divide."""
    story = _start(rng, boxed=level >= 2 and rng.random() < 0.5)
    question = rng.choice(["count"] + ["each"] * (level >= 2) + ["together"] * (level >= 3))
    asked_steps = {"count": 0, "each": 1, "together": 2}[question]
    while len(story.steps) < level - asked_steps:
        _event(rng, story)
    if question == "each":
        return _ask_each(rng, story)
    if question == "together":
        return _ask_together(rng, story)
    story.sentences.append(f"How many {story.things} does {story.name} have?")
    return story


def _start(rng: random.Random, boxed: bool) -> Story:
    name, receiver, rival = rng.sample(NAMES, 3)
    things = rng.choice(THINGS)
    if not boxed:
        count = rng.randint(5, 60)
        return Story(name, receiver, rival, things, count, [f"{name} has {count} {things}."])
    boxes, inside = rng.randint(2, 9), rng.randint(3, 12)
    story = Story(name, receiver, rival, things, boxes)
    story.tell(f"{name} has {boxes} {rng.choice(BOXES)} of {inside} {things}.", "*", inside, boxes * inside)
    return story


def _event(rng: random.Random, story: Story) -> None:
    """One more or fewer: giving away, losing, buying or finding."""
    n = rng.randint(2, 40)
    if rng.random() < 0.5 and story.count > n:
        sentence = rng.choice((f"{story.name} gives {story.receiver} {n}.", f"{story.name} loses {n}."))
        story.tell(sentence, "-", n, story.count - n)
    else:
        story.tell(f"{story.name} {rng.choice(('buys', 'finds'))} {n} more.", "+", n, story.count + n)


def _ask_each(rng: random.Random, story: Story) -> Story | None:
    shares = [n for n in range(2, 10) if story.count % n == 0]
    if not shares:
        return None
    friends = rng.choice(shares)
    sentence = f"{story.name} shares them among {friends} friends. How many does each get?"
    story.tell(sentence, "/", friends, story.count // friends)
    return story


def _ask_together(rng: random.Random, story: Story) -> Story:
    own, times = story.count, rng.randint(2, 5)
    story.tell(f"{story.rival} has {times} times as many.", "*", times, own * times)
    both = f"How many {story.things} do {story.name} and {story.rival} have?"
    story.tell(both, "+", own, own * times + own)
    return story
