"""The 16 everyday categories of the cue-conflict pictures, as classes of ImageNet [Geirhos 2018, 1808.08750].

Their definition names 207 of ImageNet's 1,000 classes; the others are of no category. Each is a hyponym of
its category in WordNet, but not all hyponyms count: ambiguous ones (crane, boxer) and most cars are left out.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

IMAGENET = 1000  # classes; in ImageNet's order they are sorted by their WordNet ids
WORDNET = re.compile(r"\bn(\d{8})\b")
LANDMARKS = {0: "tench", 1: "goldfish", 404: "airliner", 999: "toilet"}  # names at places of that order
# of each category: places in ImageNet's order, and WordNet ids of the same classes
DEFINITION: Mapping[str, tuple[str, str]] = {
    "airplane": (
        "404",
        "02690373",
    ),
    "bear": (
        "294-297",
        "02132136 02133161 02134084 02134418",
    ),
    "bicycle": (
        "444 671",
        "02835271 03792782",
    ),
    "bird": (
        "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
        "01514859 01530575 01531178 01532829 01534433 01537544 01558993 01560419 01582220 01592084 "
        "01601694 01614925 01616318 01622779 01795545 01796340 01797886 01798484 01817953 01818515 "
        "01819313 01820546 01824575 01828970 01829413 01833805 01843065 01843383 01855032 01855672 "
        "01860187 02002556 02002724 02006656 02007558 02009229 02009912 02011460 02013706 02017213 "
        "02018207 02018795 02025239 02027492 02028035 02033041 02037110 02051845 02056570",
    ),
    "boat": (
        "472 554 625 814 914",
        "02951358 03344393 03662601 04273569 04612504",
    ),
    "bottle": (
        "440 720 737 898-899 901 907",
        "02823428 03937543 03983396 04557648 04560804 04579145 04591713",
    ),
    "car": (
        "436 511 817",
        "02814533 03100240 04285008",
    ),
    "cat": (
        "281-286",
        "02123045 02123159 02123394 02123597 02124075 02125311",
    ),
    "chair": (
        "423 559 765 857",
        "02791124 03376595 04099969 04429376",
    ),
    "clock": (
        "409 530 892",
        "02708093 03196217 04548280",
    ),
    "dog": (
        "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
        "02085782 02085936 02086079 02086240 02086646 02086910 02087046 02087394 02088094 02088238 "
        "02088364 02088466 02088632 02089078 02089867 02089973 02090379 02090622 02090721 02091032 "
        "02091134 02091244 02091467 02091635 02091831 02092002 02092339 02093256 02093428 02093647 "
        "02093754 02093859 02093991 02094114 02094258 02094433 02095314 02095570 02095889 02096051 "
        "02096294 02096437 02096585 02097047 02097130 02097209 02097298 02097474 02097658 02098105 "
        "02098286 02099267 02099429 02099601 02099712 02099849 02100236 02100583 02100735 02100877 "
        "02101006 02101388 02101556 02102040 02102177 02102318 02102480 02102973 02104029 02104365 "
        "02105056 02105162 02105251 02105505 02105641 02105855 02106030 02106166 02106382 02106550 "
        "02106662 02107142 02107312 02107574 02107683 02107908 02108000 02108422 02108551 02108915 "
        "02109047 02109525 02109961 02110063 02110185 02110627 02110806 02110958 02111129 02111277 "
        "02111500 02112018 02112350 02112706 02113023 02113624 02113712 02113799 02113978",
    ),
    "elephant": (
        "385-386",
        "02504013 02504458",
    ),
    "keyboard": (
        "508 878",
        "03085013 04505470",
    ),
    "knife": (
        "499",
        "03041632",
    ),
    "oven": (
        "766",
        "04111531",
    ),
    "truck": (
        "555 569 656 675 717 734 864 867",
        "03345487 03417042 03770679 03796401 03930630 03977966 04461696 04467665",
    ),
}  # fmt: skip
CATEGORIES = tuple(DEFINITION)


def places(category: str) -> list[int]:
    """A category's classes in ImageNet's order, from 0, ascending."""
    runs = (run.partition("-") for run in DEFINITION[category][0].split())
    return [place for first, _, last in runs for place in range(int(first), int(last or first) + 1)]


def wordnet(category: str) -> list[str]:
    """WordNet ids of a category's classes, as n02504013, in the order of `places`."""
    return [f"n{number}" for number in DEFINITION[category][1].split()]


def groups(classes: Sequence[str]) -> tuple[dict[str, list[int]], str] | None:
    """The numbers of a classifier's classes that make up each category, and how they were found.

    By WordNet ids within the names; otherwise, of 1,000 classes, by ImageNet's order, unless names say that
    it is another one. None if it is no such classifier.
    """
    found = [WORDNET.search(name) for name in classes]
    ids = {match[0]: number for number, match in enumerate(found) if match}
    if ids:
        own = {name: [ids[each] for each in wordnet(name) if each in ids] for name in CATEGORIES}
        own = {name: numbers for name, numbers in own.items() if numbers}
        return (own, "by the WordNet ids in their names") if own else None
    if len(classes) != IMAGENET:
        return None
    named = not all(name.strip().isdigit() for name in classes)
    if named and not all(word in classes[place].lower() for place, word in LANDMARKS.items()):
        return None
    how = "by their places, as the names are ImageNet's" if named else "taken to be in ImageNet's order"
    return {name: places(name) for name in CATEGORIES}, how


def averaged(
    probabilities: Float[np.ndarray, "n k"], numbers: Mapping[str, Sequence[int]]
) -> Float[np.ndarray, "n c"]:
    """The mean probability of each category's classes, which the paper's decisions are the largest of.

    Not the sum, which would favour categories of many classes (109 dogs, one knife).
    """
    return np.stack([probabilities[:, list(own)].mean(1) for own in numbers.values()], 1)
