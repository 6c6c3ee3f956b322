"""Words by what they do to a value: those that deny it, count, or change it. The one list of each."""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {word: value for value, word in enumerate(_ONES.split())}
NUMBERS |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
"""Number words, each with its value."""

MULTIPLES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9,
    "trillion": 10**12, "quadrillion": 10**15,
}  # fmt: skip
"""Words behind a number that multiply it."""

_MORE_MULTIPLES = _words(
    "score gross myriad fold mil grand pair couple trio mille half halve quarter third fifth eighth ninth"
)
_ORDINALS = _words("first second third fifth eighth ninth twelfth")
_ORDINAL_ENDING = re.compile(r"(?:(?P<ies>[a-z]+t)ieth|(?P<stem>[a-z]+)th)s?")

DENIALS = _words(
    "no not never nope nor neither none cannot without except unless wrong wrongly incorrect incorrectly false"
    " falsely untrue invalid impossible excluded excluding mistaken bogus fake"
)
"""Words that deny what they stand beside."""

BOUNDS = _words("than less more greater fewer above below under over least most but")
"""Words that make a bound, or an exception, of what they stand beside."""

# The same as parts of patterns, for running text.
NOT = r"(?:\b(?:not|never|neither|nor|cannot)\b|n['’]t\b|不|非)"
"""What denies the words behind it."""

WRONG = "wrong|incorrect|false|untrue|invalid|impossible|mistaken|a mistake|excluded|eliminated"
"""What is said of an answer that is none."""

DENYING = (
    rf"(?:\b(?:{'|'.join(sorted(DENIALS - {'no'}))}|no(?!\s+doubt)|non|mistake|fail\w*|exclud\w*|eliminat\w*"
    r"|rul(?:e|es|ed|ing) out|(?:instead|short) of|(?:rather|other) than|anything but|if only"
    r"|too (?:small|large|big|low|high|few|many))\b|n['’]t\b|不|非|错)"
)
"""What denies a value in the same clause."""

COMPARED = "(?:more|less|greater|fewer|larger|smaller|bigger|higher|lower|other|different) (?:than|from)|apart from"
"""What makes a bound of a value behind it, or says that it is another."""

TIMES = (
    "minus|negative|half|twice|double|triple|thrice"
    "|(?:negation|opposite|reciprocal|inverse|square|cube|(?:square |cube )?root|logarithm|complement|factorial) of"
)
"""What makes another value of one behind it."""

_DOUBTS = _words("maybe perhaps possibly probably or ish if when otherwise else either any almost nearly")
_HEDGES = _DOUBTS | _words(
    "so and while both some several many much few all every too only about around approximately roughly up down to"
    " from by between is are was were be isn't"
)
_OPERATIONS = _words(
    "minus plus times factorial negative negation reciprocal inverse opposite conjugate complement root radical power"
    " exponent double triple quadruple twice thrice once mod modulo percent percentage permille permil logarithm log"
    " absolute squared cubed basis fraction numerator denominator decimal ratio remainder"
)
_TURNS = _words(
    "minus plus times negative negation reciprocal inverse opposite conjugate complement double triple quadruple twice"
    " thrice once half quarter third square cube squared cubed doubled tripled halved negated inverted reversed"
)
"""Of the operations those that are no name of a result, as "root" and "power" are."""

_THE_ANSWER = _words("a an the of to answer answers result results value values solution number it its this that is")
"""What says nothing about a value but that it is one."""

_CHANGES = DENIALS | BOUNDS | _HEDGES | _OPERATIONS | _MORE_MULTIPLES | NUMBERS.keys() | MULTIPLES.keys()
_PARTICIPLE = re.compile(r"[a-z]*[aeiouy][a-z]*(?<!e)ed")
_ADVERB = re.compile(r"[a-z]{2,}ly")
_VOWEL = re.compile(r"[aeiouy]")
_JOINING = frozenset({"per", "of", "in", "for", "each", "total", "altogether", "left"})
_TOGETHER = frozenset({"total", "altogether", "left"})
_MOST_NOUNS = 2
_SHORTEST_NOUN = 3


def denies(words: str) -> bool:
    """Whether ``words`` before a value say that it is not the answer, or only a bound of it."""
    found = re.findall(r"[a-z']+", words.casefold())
    return any(word in DENIALS or word in BOUNDS or word.endswith("n't") for word in found)


def takes_back(label: str) -> bool:
    """Whether a label says that what it stands before is not the answer, or leaves it open: "not", "minus", "maybe"."""
    parts = [part for part in re.findall(r"[a-z']+", label.casefold()) if part not in _THE_ANSWER]
    if denies(label) or names_a_number(label):
        return True
    return bool(parts) and all(part in _TURNS or part in _DOUBTS for part in parts)


def names_a_number(words: str) -> bool:
    """Whether ``words`` are a number spelled out: no name for another number."""
    parts = words.replace("-", " ").split()
    return bool(parts) and all(part in NUMBERS or part in MULTIPLES for part in parts)


def spelled_number(words: str) -> int | None:
    """5 for "five", 25 for "twenty-five", 2000 for "two thousand"; None for other words."""
    parts = words.replace("-", " ").split()
    multiple = MULTIPLES[parts.pop()] if len(parts) > 1 and parts[-1] in MULTIPLES else 1
    values = [NUMBERS.get(part) for part in parts]
    match values:
        case [int(value)]:
            return value * multiple
        case [int(tens), int(ones)] if tens >= 20 and 0 < ones < 10:
            return (tens + ones) * multiple
    return None


def says_of_what(words: str) -> bool:
    """Whether ``words`` behind a value only say of what it is so many: one noun or two, none of which can change it.

    Words are not looked up but judged by their form: no number, ordinal, multiple, denial, quantity, operation,
    participle or adverb, and no abbreviation, which may be any of these.
    """
    parts = [part for part in re.findall(r"[a-z]+", words.casefold()) if part not in _JOINING]
    if not parts:
        return words.split()[-1] in _TOGETHER
    return len(parts) <= _MOST_NOUNS and not any(map(_may_change_a_value, parts))


def _may_change_a_value(word: str) -> bool:
    if word in _CHANGES or word.removesuffix("s") in _CHANGES or word.endswith("illion"):
        return True
    if len(word) < _SHORTEST_NOUN or not _VOWEL.search(word):
        return True
    ordinal = _ORDINAL_ENDING.fullmatch(word)
    if word in _ORDINALS or (ordinal and ((ordinal["ies"] or "") + "y" in NUMBERS or _is_multiple(ordinal["stem"]))):
        return True
    # "red" is a colour and "seed" a noun; "doubled" and "negated" are what was done.
    return (len(word) > _SHORTEST_NOUN + 1 and _PARTICIPLE.fullmatch(word) is not None) or bool(_ADVERB.fullmatch(word))


def _is_multiple(word: str | None) -> bool:
    return word in NUMBERS or word in MULTIPLES or (word or "").endswith("illion")
