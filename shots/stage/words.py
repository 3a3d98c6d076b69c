"""The grammar of the stage: English captions, film summaries and event queries for films whose every fact is known.

Notable choices:

- Every thing has one canonical phrase, at least seven more for training, and a few held-out ones that only
  `wording="heldout"` uses. `shots.stage.parse` reads the same tables backwards, so whatever is written can be read.
- A phrase belongs to one meaning only. In action phrases `*` marks each verb (so that gerund and base form follow by
  rule), `{other}` is the second actor, `{colour}` the new colour and `{own}` the actor's colour.
- About a third of the captions are short and plain ("A red cube jumps."), because people type those; longer ones say
  a random part of what a viewer can tell, in random order. What a viewer cannot tell is not said.
- Canonical colour words dominate: they are what the text encoder binds best.
- Captions stay near 45 word pieces for one actor and 60 for several: the text encoder reads 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from shots.stage.facts import CAMERA_CLASS, SHOT_FACTS, ActorFacts, Facts, Observed, core_action
from shots.stage.scene import Action, Actor, Film


@dataclass(frozen=True)
class Phrases:
    """All ways to say one thing: `train[0]` is the canonical one."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.train + self.heldout


def _say(train: str, heldout: str) -> Phrases:
    return Phrases(tuple(part.strip() for part in train.split("|")), tuple(part.strip() for part in heldout.split("|")))


SHAPE_WORDS: dict[str, Phrases] = {
    "sphere": _say(
        "sphere | ball | orb | round ball | globe | beach ball | marble | billiard ball | round sphere",
        "bead | bubble | cannonball",
    ),
    "cube": _say(
        "cube | box | block | square box | crate | cubic block | square block | toy block",
        "dice | cardboard box | brick",
    ),
    "cylinder": _say(
        "cylinder | can | drum | tin can | barrel | round pillar | canister | upright cylinder",
        "tube | round column | tin",
    ),
    "cone": _say(
        "cone | pointed cone | traffic cone | pointy cone | spike | party hat | paper cone | upright cone",
        "witch hat | funnel | teepee",
    ),
    "torus": _say(
        "torus | ring | donut | doughnut | hoop | tyre | tire | rubber ring | round ring",
        "bagel | lifebuoy | inner tube",
    ),
    "capsule": _say(
        "capsule | pill | lozenge | upright capsule | upright pill | pill shape | rounded rod | medicine capsule",
        "tablet | vitamin pill | sausage",
    ),
}

COLOUR_WORDS: dict[str, Phrases] = {
    "red": _say(
        "red | bright red | deep red | crimson | scarlet | ruby red | cherry red | strong red",
        "tomato red | ruby | blood red",
    ),
    "orange": _say(
        "orange | bright orange | deep orange | pumpkin orange | tangerine | vivid orange | warm orange"
        " | carrot orange",
        "amber orange | carrot coloured",
    ),
    "yellow": _say(
        "yellow | bright yellow | lemon yellow | sunny yellow | golden yellow | canary yellow | deep yellow"
        " | vivid yellow",
        "lemon coloured | banana yellow",
    ),
    "green": _say(
        "green | bright green | deep green | emerald green | grass green | forest green | leaf green | emerald",
        "jade green | bottle green",
    ),
    "cyan": _say(
        "cyan | bright cyan | turquoise | aqua | teal | aquamarine | blue green | vivid cyan",
        "turquoise blue | cyan coloured",
    ),
    "blue": _say(
        "blue | bright blue | deep blue | royal blue | cobalt blue | vivid blue | sapphire blue | dark blue",
        "navy blue | sapphire",
    ),
    "purple": _say(
        "purple | bright purple | deep purple | violet | royal purple | dark purple | vivid purple | grape purple",
        "plum coloured | aubergine",
    ),
    "pink": _say(
        "pink | bright pink | hot pink | rose pink | bubblegum pink | light pink | vivid pink | candy pink",
        "salmon pink | flamingo pink",
    ),
    "white": _say(
        "white | bright white | snow white | pure white | chalk white | milk white | plain white | clean white",
        "ivory white | paper white",
    ),
    "black": _say(
        "black | jet black | deep black | pitch black | pure black | coal black | dark black | ink black",
        "ebony | raven black",
    ),
}

SIZE_WORDS: dict[str, Phrases] = {
    "small": _say(
        "small | little | tiny | mini | miniature | small sized | undersized | petite",
        "pint sized | dinky | wee",
    ),
    "medium": _say(
        "medium sized | mid sized | average sized | regular sized | normal sized | ordinary sized | middle sized"
        " | medium",
        "moderately sized | standard sized",
    ),
    "large": _say(
        "large | big | huge | giant | great big | oversized | massive | large sized",
        "enormous | hulking | jumbo",
    ),
}

# Adjectives before the colour; `SURFACE_TAILS` come after the shape.
SURFACE_WORDS: dict[str, Phrases] = {
    "matte": _say(
        "matte | dull | chalky | unpolished | flat matte | plain matte | non shiny | rough matte",
        "powdery matte | lustreless | unglazed",
    ),
    "shiny": _say(
        "shiny | glossy | polished | gleaming | reflective | mirror like | lacquered | smooth shiny",
        "chrome | glassy | burnished",
    ),
    "striped": _say(
        "striped | stripy | banded | stripe patterned | candy striped | two tone striped | barred | boldly striped",
        "zebra striped | pinstriped | ringed",
    ),
}
SURFACE_TAILS: dict[str, Phrases] = {
    "matte": _say("with a matte surface | with a dull finish | with a matte finish | with no shine", "made of chalk"),
    "shiny": _say(
        "with a shiny surface | with a glossy finish | made of polished metal | with a mirror finish",
        "that gleams like chrome",
    ),
    "striped": _say(
        "with stripes | covered in stripes | with a striped pattern | with bands around it",
        "wearing stripes",
    ),
}

ACTION_WORDS: dict[str, Phrases] = {
    "still": _say(
        "*stands still | *stays still | does not move/not moving/not move | *stays in place | *remains motionless"
        " | *rests | *keeps still | *waits | *holds still | *is motionless",
        "*sits idle | *stays put | *is frozen in place",
    ),
    "move_left": _say(
        "*moves left | *slides to the left | *moves to the left | *glides left | *travels to the left"
        " | *drifts left | *goes left | *heads to the left | *slides left",
        "*shifts leftward | *makes its way left | *scoots to the left",
    ),
    "move_right": _say(
        "*moves right | *slides to the right | *moves to the right | *glides right | *travels to the right"
        " | *drifts right | *goes right | *heads to the right | *slides right",
        "*shifts rightward | *makes its way right | *scoots to the right",
    ),
    "move_toward": _say(
        "*moves toward the camera | *comes closer | *approaches the viewer | *slides toward us"
        " | *comes toward the viewer | *moves closer to the camera | *glides toward the camera"
        " | *advances toward us | *moves forward",
        "*nears the lens | *draws closer | *heads straight for us",
    ),
    "move_away": _say(
        "*moves away | *recedes | *moves into the distance | *slides away from the camera | *backs away | *retreats"
        " | *goes farther away | *glides away from us | *moves away from the camera",
        "*withdraws into the background | *drifts off into the distance | *gets farther from the lens",
    ),
    "jump": _say(
        "*jumps | *hops | *leaps | *jumps up | *jumps into the air | *leaps into the air | *hops up | *springs up"
        " | *jumps up and down | *bounces up",
        "*bounds upward | *takes a leap | *skips upward",
    ),
    "spin": _say(
        "*spins | *spins around | *rotates | *turns around | *twirls | *whirls around | *spins in place"
        " | *rotates on the spot | *revolves",
        "*pirouettes | *gyrates | *turns like a top",
    ),
    "grow": _say(
        "*grows | *gets bigger | *grows larger | *expands | *becomes larger | *swells | *inflates | *grows in size"
        " | *gets larger",
        "*enlarges | *balloons | *puffs up",
    ),
    "shrink": _say(
        "*shrinks | *gets smaller | *becomes smaller | *shrinks down | *contracts | *dwindles | *shrinks in size"
        " | *deflates | *grows smaller",
        "*diminishes | *miniaturises | *loses size",
    ),
    "stretch": _say(
        "*stretches | *stretches upward | *gets taller | *stretches tall | *becomes taller | *elongates"
        " | *grows taller | *extends upward | *stretches up",
        "*lengthens upward | *becomes tall and thin | *elongates vertically",
    ),
    "squash": _say(
        "*squashes | *flattens | *gets flatter | *is squashed flat | *becomes flat | *flattens out | *squashes down"
        " | *gets squashed | *is flattened",
        "*squishes down | *pancakes | *is pressed flat",
    ),
    "fall": _say(
        "*falls | *falls down | *drops from above | *falls from the sky | *drops down | *falls to the floor"
        " | *comes down from above | *drops onto the floor | *falls from above",
        "*plummets | *plunges to the ground | *tumbles down from the sky",
    ),
    "change_colour": _say(
        "*turns {colour} | *becomes {colour} | *changes to {colour} | *changes colour to {colour}"
        " | *turns from {own} to {colour} | *changes from {own} to {colour} | *fades to {colour} | *goes {colour}"
        " | *shifts to {colour}",
        "*takes on a {colour} colour | *is repainted {colour} | *transforms from {own} into {colour}",
    ),
    "circle": _say(
        "*circles {other} | *circles around {other} | *goes around {other} | *moves in a circle around {other}"
        " | *orbits {other} | *travels around {other} | *loops around {other} | *runs around {other}",
        "*revolves around {other} | *does a lap around {other} | *rounds {other}",
    ),
    "push": _say(
        "*pushes {other} | *shoves {other} | *pushes {other} along | *pushes against {other} | *pushes {other} away"
        " | *shoves {other} along | *bumps {other} along | *pushes {other} across the floor",
        "*nudges {other} | *shunts {other} along | *drives {other} ahead of it",
    ),
    "jump_over": _say(
        "*jumps over {other} | *leaps over {other} | *hops over {other} | *jumps right over {other}"
        " | *springs over {other} | *jumps across {other} | *leaps across {other} | *jumps clean over {other}",
        "*vaults over {other} | *bounds over {other} | *sails over {other}",
    ),
    "hide_behind": _say(
        "*hides behind {other} | *goes behind {other} | *moves behind {other} | *disappears behind {other}"
        " | *slides behind {other} | *slips behind {other} | *hides itself behind {other}"
        " | *goes and *hides behind {other}",
        "*ducks behind {other} | *vanishes behind {other} | *takes cover behind {other}",
    ),
}
# Tails that tell the direction of a push or a jump over something.
DIRECTION_TAILS: dict[int, Phrases] = {
    -1: _say("to the left | toward the left | from right to left | leftward", "to the left side"),
    1: _say("to the right | toward the right | from left to right | rightward", "to the right side"),
}

# Camera moves as a verb of "the camera".
CAMERA_WORDS: dict[str, Phrases] = {
    "static": _say(
        "*stays still | *stays fixed | does not move/not moving/not move | *holds still | *is static"
        " | *remains still | *is fixed | *stays in place",
        "*is locked off | *keeps perfectly still",
    ),
    "pan_left": _say(
        "*pans left | *pans to the left | *turns left | *turns to the left | *swings left | *pans slowly left"
        " | *swings to the left | *looks to the left",
        "*sweeps left | *swivels to the left",
    ),
    "pan_right": _say(
        "*pans right | *pans to the right | *turns right | *turns to the right | *swings right | *pans slowly right"
        " | *swings to the right | *looks to the right",
        "*sweeps right | *swivels to the right",
    ),
    "tilt_up": _say(
        "*tilts up | *tilts upward | *looks up | *turns up | *tilts slowly up | *turns upward | *swings up | *tips up",
        "*angles up | *pitches upward",
    ),
    "tilt_down": _say(
        "*tilts down | *tilts downward | *looks down | *turns down | *tilts slowly down | *turns downward"
        " | *swings down | *tips down",
        "*angles down | *pitches downward",
    ),
    "zoom_in": _say(
        "*zooms in | *zooms in slowly | *slowly zooms in | *zooms in on the scene | *zooms closer"
        " | *zooms in gently | *tightens its zoom | *zooms right in",
        "*magnifies the view | *punches in",
    ),
    "zoom_out": _say(
        "*zooms out | *zooms out slowly | *slowly zooms out | *zooms out from the scene | *zooms away"
        " | *zooms out gently | *widens its zoom | *zooms right out",
        "*widens the view | *punches out",
    ),
    "dolly_in": _say(
        "*dollies in | *moves in | *pushes in | *moves closer | *moves forward | *tracks in | *rolls forward"
        " | *comes closer",
        "*creeps in | *glides forward",
    ),
    "dolly_out": _say(
        "*dollies out | *moves back | *pulls back | *moves away | *moves backward | *tracks out | *rolls back"
        " | *pulls out",
        "*retreats | *glides backward",
    ),
    "orbit_left": _say(
        "*orbits left | *orbits to the left | *circles left | *circles to the left | *arcs left | *arcs to the left"
        " | *moves around to the left | *orbits the scene to the left",
        "*revolves leftward | *travels around to the left",
    ),
    "orbit_right": _say(
        "*orbits right | *orbits to the right | *circles right | *circles to the right | *arcs right"
        " | *arcs to the right | *moves around to the right | *orbits the scene to the right",
        "*revolves rightward | *travels around to the right",
    ),
}
# Camera moves as a name, said before or after the rest.
CAMERA_TAGS: dict[str, Phrases] = {
    "static": _say(
        "static camera | fixed camera | static shot | still camera | locked camera | fixed shot"
        " | no camera movement | steady camera",
        "tripod shot | locked off shot",
    ),
    "pan_left": _say(
        "pan left | camera pan to the left | left pan | camera pan left | panning left | slow pan left"
        " | pan to the left | panning shot to the left",
        "leftward pan",
    ),
    "pan_right": _say(
        "pan right | camera pan to the right | right pan | camera pan right | panning right | slow pan right"
        " | pan to the right | panning shot to the right",
        "rightward pan",
    ),
    "tilt_up": _say(
        "tilt up | camera tilt up | upward tilt | tilting up | slow tilt up | camera tilting up | tilting upward"
        " | tilt upward",
        "upward camera tilt",
    ),
    "tilt_down": _say(
        "tilt down | camera tilt down | downward tilt | tilting down | slow tilt down | camera tilting down"
        " | tilting downward | tilt downward",
        "downward camera tilt",
    ),
    "zoom_in": _say(
        "zoom in | slow zoom in | camera zoom in | zooming in | gentle zoom in | smooth zoom in | camera zooming in"
        " | inward zoom",
        "zoom inward",
    ),
    "zoom_out": _say(
        "zoom out | slow zoom out | camera zoom out | zooming out | gentle zoom out | smooth zoom out"
        " | camera zooming out | outward zoom",
        "zoom outward",
    ),
    "dolly_in": _say(
        "dolly in | slow dolly in | camera dolly in | dolly shot moving in | push in | slow push in"
        " | camera push in | tracking shot moving in",
        "forward dolly",
    ),
    "dolly_out": _say(
        "dolly out | slow dolly out | camera dolly out | dolly shot moving out | pull back | slow pull back"
        " | camera pull back | tracking shot moving out",
        "backward dolly",
    ),
    "orbit_left": _say(
        "orbit left | camera orbit to the left | left orbit | orbit shot to the left | orbiting left"
        " | slow orbit left | orbit to the left | arc shot to the left",
        "leftward orbit",
    ),
    "orbit_right": _say(
        "orbit right | camera orbit to the right | right orbit | orbit shot to the right | orbiting right"
        " | slow orbit right | orbit to the right | arc shot to the right",
        "rightward orbit",
    ),
}

# Nouns that can open a caption ("Wide shot of ..."); the tails come after.
SHOT_SIZE_WORDS: dict[str, Phrases] = {
    "wide": _say(
        "wide shot | long shot | wide view | full shot | wide angle shot | wide frame | distant shot | far shot",
        "establishing shot | panoramic shot",
    ),
    "medium": _say(
        "medium shot | mid shot | medium view | middle shot | normal shot | standard shot | medium frame"
        " | mid range shot",
        "half distance shot | moderate shot",
    ),
    "close-up": _say(
        "close-up | close-up shot | tight shot | close view | tight close-up | close shot | close-up view"
        " | tight frame",
        "macro shot | intimate shot",
    ),
}
SHOT_SIZE_TAILS: dict[str, Phrases] = {
    "wide": _say("from far away | from a distance | seen from afar | in a wide shot", "viewed from a long way off"),
    "medium": _say(
        "from a medium distance | at mid distance | at a medium distance | in a medium shot",
        "from a moderate distance",
    ),
    "close-up": _say("from close by | seen up close | close to the camera | in close-up", "at very close range"),
}
ANGLE_WORDS: dict[str, Phrases] = {
    "eye-level": _say(
        "at eye level | from eye level | seen at eye level | in an eye level view | straight on"
        " | from a level angle | with a level camera | from a straight angle",
        "viewed head on | from standing height",
    ),
    "low": _say(
        "from a low angle | from below | seen from below | from near the ground | from ground level"
        " | with a low camera | from low down | in a low angle view",
        "from a worms eye view | from down low",
    ),
    "high": _say(
        "from a high angle | viewed from above | seen from above | from overhead | from high up"
        " | with a high camera | looking down from above | in a high angle view",
        "from a birds eye view | from up high",
    ),
}
ANGLE_TAGS: dict[str, Phrases] = {
    "eye-level": _say("eye level", "level"),
    "low": _say("low angle", "low level"),
    "high": _say("high angle", "overhead"),
}

# Floors come after "on".
FLOOR_WORDS: dict[str, Phrases] = {
    "checker": _say(
        "a checkered floor | a checkerboard floor | a checkerboard | a chessboard floor | a chequered floor"
        " | a checker floor | a floor of checkered squares | a chessboard",
        "a draughts board | a checked floor",
    ),
    "tiles": _say(
        "a tiled floor | tiles | floor tiles | a floor of tiles | square tiles | ceramic tiles | a tile floor"
        " | tiled ground",
        "stone tiles | bathroom tiles",
    ),
    "planks": _say(
        "wooden planks | a wooden floor | a plank floor | wood planks | floorboards | a floor of planks"
        " | a wood floor | wooden boards",
        "parquet | timber boards",
    ),
    "sand": _say(
        "sand | a sandy floor | the sand | sandy ground | a beach | desert sand | a sandy beach | soft sand",
        "a dune | the desert",
    ),
    "grass": _say(
        "grass | a grassy floor | the grass | a lawn | a grass field | a meadow | grassy ground | a green lawn",
        "turf | a pasture",
    ),
    "snow": _say(
        "snow | a snowy floor | the snow | snowy ground | fresh snow | a snow field | snow covered ground | soft snow",
        "a blanket of snow | wintry ground",
    ),
    "concrete": _say(
        "concrete | a concrete floor | bare concrete | a cement floor | concrete ground | grey concrete"
        " | a smooth concrete floor | cement",
        "asphalt | pavement",
    ),
}
SKY_WORDS: dict[str, Phrases] = {
    "clear": _say(
        "under a clear sky | on a sunny day | in bright daylight | under a cloudless sky | on a clear day"
        " | in the sunshine | under a clear blue sky | under an open sky",
        "at high noon | in fine weather",
    ),
    "cloudy": _say(
        "under a cloudy sky | on a cloudy day | under an overcast sky | under grey clouds | in cloudy weather"
        " | under clouds | on an overcast day | beneath a cloudy sky",
        "on a dreary day | beneath heavy clouds",
    ),
    "sunset": _say(
        "at sunset | under a sunset sky | at dusk | in the light of the setting sun | in the evening glow"
        " | as the sun goes down | in the evening | in sunset light",
        "at golden hour | at twilight",
    ),
    "night": _say(
        "at night | under a night sky | in the dark of night | under the stars | under a starry sky | by moonlight"
        " | after dark | during the night",
        "at midnight | in the moonlit darkness",
    ),
    "studio": _say(
        "in a studio | in a photo studio | against a plain backdrop | on a studio set | under studio lights"
        " | in front of a studio backdrop | with a studio background | in studio lighting",
        "on a sound stage | with a seamless backdrop",
    ),
}
STYLE_WORDS: dict[str, Phrases] = {
    "realistic": _say(
        "in a realistic style | rendered realistically | photorealistic | in realistic style"
        " | with realistic shading | in a lifelike style | in a photorealistic style | like a real photo",
        "true to life | in a naturalistic look",
    ),
    "toon": _say(
        "in a cartoon style | in toon style | as a cartoon | cel shaded | in a comic style | like a cartoon"
        " | in cartoon shading | in a toon look",
        "as an animated drawing | in a comic book look",
    ),
    "neon": _say(
        "in neon style | in a neon style | in glowing neon | lit by neon | in neon light | with a neon glow"
        " | in neon colours | in a neon look",
        "in a cyberpunk style | under blacklight",
    ),
}
FOG_WORDS: dict[bool, Phrases] = {
    True: _say(
        "in fog | in the fog | on a foggy day | in thick fog | in mist | with fog all around | in the haze"
        " | in foggy air",
        "shrouded in mist | in a pea soup fog",
    ),
    False: _say(
        "in clear air | without fog | with no fog | free of fog | in crisp air | with clear air | without any haze"
        " | without mist",
        "with perfect visibility | in haze free air",
    ),
}

COMPANIONS = Phrases(
    (
        "next to {other}",
        "beside {other}",
        "near {other}",
        "close to {other}",
        "alongside {other}",
        "not far from {other}",
        "together with {other}",
        "with {other} nearby",
        "with {other} beside it",
    ),
    ("in the company of {other}", "by the side of {other}"),
)

_DOUBLED = {"hop", "spin", "run", "get", "slip", "drop", "flip", "tip", "skip", "sit", "pan", "put"}


def verb_forms(phrase: str) -> tuple[str, str, str]:
    """Third person, gerund and base form of an action phrase with starred verbs (or "third/gerund/base" written
    out)."""
    if "/" in phrase:
        third, gerund, base = phrase.split("/")
        return third, gerund, base
    words = phrase.split()
    return (
        phrase.replace("*", ""),
        " ".join(_gerund(_base(word[1:])) if word.startswith("*") else word for word in words),
        " ".join(_base(word[1:]) if word.startswith("*") else word for word in words),
    )


def _base(third: str) -> str:
    if third == "is":
        return "be"
    if third == "dollies":
        return "dolly"
    if third.endswith(("ches", "shes", "xes", "sses", "zzes", "oes")):
        return third[:-2]
    return third[:-1]


def _gerund(base: str) -> str:
    if base in _DOUBLED:
        return base + base[-1] + "ing"
    if base.endswith("e") and base != "be":
        return base[:-1] + "ing"
    return base + "ing"


@dataclass(frozen=True)
class Caption:
    """A caption and exactly the facts it says (`None` = not said)."""

    text: str
    facts: Facts


# How often the canonical phrase is used where any phrase of training may be.
_CANONICAL = {"colour": 0.86, "shape": 0.5, "size": 0.5, "surface": 0.55, "action": 0.4, "floor": 0.3, "other": 0.2}


@dataclass
class _Speaker:
    """Picks phrases and notes the facts said, actor by actor."""

    rng: Random
    wording: str
    said: dict[str, ActorFacts] = field(default_factory=dict)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, phrases: Phrases, kind: str = "other") -> str:
        if self.wording == "heldout" and self.chance(0.25 if kind == "colour" else 0.8):
            return self.rng.choice(phrases.heldout)
        if len(phrases.train) == 1 or self.chance(_CANONICAL[kind]):
            return phrases.train[0]
        return self.rng.choice(phrases.train[1:])

    def noun(self, actor: Actor, rich: float, definite: bool = False, size: bool = True, surface: bool = True) -> str:
        """The actor with article; `rich` scales how likely size and surface are said; notes what is said."""
        facts = self.said.get(actor.name, ActorFacts(colour=actor.colour, shape=actor.shape))
        words, tail = [], ""
        if facts.size is None and size and self.chance((0.1 if actor.size == "medium" else 0.7) * rich):
            words.append(self.pick(SIZE_WORDS[actor.size], "size"))
            facts = replace(facts, size=actor.size)
        if facts.surface is None and surface and self.chance((0.3 if actor.surface == "matte" else 0.8) * rich):
            if self.chance(0.2):
                tail = " " + self.pick(SURFACE_TAILS[actor.surface])
            else:
                words.append(self.pick(SURFACE_WORDS[actor.surface], "surface"))
            facts = replace(facts, surface=actor.surface)
        self.said[actor.name] = facts
        words += [self.pick(COLOUR_WORDS[actor.colour], "colour"), self.pick(SHAPE_WORDS[actor.shape], "shape")]
        text = " ".join(words) + tail
        return f"the {text}" if definite else f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    def again(self, actor: Actor) -> str:
        """The actor mentioned once more: "the red cube"."""
        return f"the {actor.colour} {self.pick(SHAPE_WORDS[actor.shape], 'shape')}"

    def note(self, actor: Actor, kind: str) -> None:
        facts = self.said[actor.name]
        self.said[actor.name] = replace(facts, actions=(*facts.actions, kind))


def capitalised(text: str) -> str:
    """With its first letter a capital."""
    return text[:1].upper() + text[1:]


@dataclass
class _Scene:
    """One shot as the viewer sees it: who is there and what can be told of it."""

    film: Film
    shot: int
    observations: Observed | None

    def __post_init__(self) -> None:
        spec, seen = self.film.shots[self.shot], self.observations
        names = [p.actor for p in spec.placements if seen is None or seen.sees_actor(self.shot, p.actor)]
        self.actors: dict[str, Actor] = {name: self.film.actor(name) for name in names}
        self.actions: dict[str, list[Action]] = {name: [] for name in names}
        for index, action in enumerate(spec.actions):
            if (
                action.kind == "still"
                or action.actor not in self.actors
                or (action.other is not None and action.other not in self.actors)
            ):
                continue
            if seen is None or seen.sees_action(self.shot, index):
                self.actions[action.actor].append(action)
        busy = {action.actor for action in spec.actions if action.kind != "still"}
        busy |= {action.other for action in spec.actions if action.kind == "push" and action.other is not None}
        self.still = {name for name in names if name not in busy and (seen is None or seen.sees_still(self.shot, name))}
        for actions in self.actions.values():
            actions.sort(key=lambda action: action.start)

    def size_told(self, name: str) -> bool:
        return self.observations is None or self.observations.sees_size(self.shot, name)

    def surface_told(self, name: str) -> bool:
        return self.observations is None or self.observations.sees_surface(self.shot, name)

    def told(self, fact: str) -> bool:
        """Whether a fact of the shot (one of `SHOT_FACTS`) can be told."""
        if self.observations is None:
            return True
        return (
            self.observations.sees_camera(self.shot)
            if fact == "camera"
            else self.observations.sees_set(self.shot, fact)
        )


@dataclass
class _Core:
    """The actors' part of a caption: whole sentences, or, where it is one clause, also a name for it ("a red cube
    jumping")."""

    sentences: list[str]
    nominal: str | None = None


class _Teller:
    """Writes the actors' part of one caption."""

    def __init__(self, scene: _Scene, speaker: _Speaker, rich: float) -> None:
        self.scene, self.speaker, self.rich, self.rng = scene, speaker, rich, speaker.rng

    def noun(self, name: str, definite: bool = False) -> str:
        actor = self.scene.actors[name]
        if name in self.speaker.said:
            return self.speaker.again(actor)
        return self.speaker.noun(
            actor, self.rich, definite, size=self.scene.size_told(name), surface=self.scene.surface_told(name)
        )

    def verb(self, action: Action, form: int) -> str:
        """One action in third person (0), gerund (1) or base form (2); notes it as said."""
        actor = self.scene.actors[action.actor]
        phrase = verb_forms(self.speaker.pick(ACTION_WORDS[action.kind], "action"))[form]
        self.speaker.note(actor, action.kind)
        if action.kind == "push" and phrase.endswith("{other}") and self.speaker.chance(0.5):
            phrase += " " + self.speaker.pick(DIRECTION_TAILS[action.direction])
        if action.other is not None:
            phrase = phrase.replace("{other}", self.noun(action.other))
        if action.colour is not None:
            facts = self.speaker.said[actor.name]
            phrase = phrase.replace("{colour}", action.colour).replace("{own}", facts.new_colour or actor.colour)
            self.speaker.said[actor.name] = replace(facts, new_colour=action.colour)
        return phrase

    def still_verb(self, name: str, form: int) -> str:
        self.speaker.note(self.scene.actors[name], "still")
        return verb_forms(self.speaker.pick(ACTION_WORDS["still"], "action"))[form]

    def one(self, name: str) -> _Core:
        """The only actor of the shot."""
        actions, rng = self.scene.actions[name], self.rng
        subject = self.noun(name)
        if not actions:
            if name in self.scene.still and self.speaker.chance(0.7):
                return self.clause(subject, lambda form: self.still_verb(name, form))
            return self.presence(subject)
        if len(actions) == 1:
            return self.clause(subject, lambda form: self.verb(actions[0], form))
        style = rng.randrange(5)
        if style == 0:
            verbs = [self.verb(action, 0) for action in actions]
            rest = "".join(f", then it {verb}" for verb in verbs[1:])
            return _Core([f"first {subject} {verbs[0]}{rest}"])
        if style == 1:
            verbs = [self.verb(action, 0) for action in actions]
            return _Core(
                [
                    f"{subject} {verbs[0]}",
                    *(rng.choice(["then it ", "after that it ", "next it "]) + verb for verb in verbs[1:]),
                ]
            )
        if style == 2 and len(actions) == 2:
            return _Core([f"{subject} {self.verb(actions[0], 0)} before {self.verb(actions[1], 1)}"])
        form = rng.choice([0, 0, 1])
        verbs = [self.verb(action, form) for action in actions]
        joint = rng.choice([", then ", " and then ", ", and after that "])
        text = f"{subject} {verbs[0]}" + "".join(f"{joint}{verb}" for verb in verbs[1:])
        return _Core([text], text if form == 1 else None)

    def clause(self, subject: str, verb: Callable[[int], str]) -> _Core:
        """One subject with one verb, in one of the sentence frames."""
        frame = self.rng.random()
        if frame < 0.58:
            return _Core([f"{subject} {verb(0)}"])
        if frame < 0.78:
            nominal = f"{subject} {verb(1)}"
            return _Core([nominal], nominal)
        lead = self.rng.choice(["there is {} that {}", "we see {} that {}", "here {} {}", "we see how {} {}"])
        if frame < 0.86:
            return _Core([lead.format(subject, verb(0))])
        if frame < 0.94:
            lead = self.rng.choice(["we see {}", "a video of {}", "a clip of {}", "a film of {}", "we watch {}"])
            return _Core([lead.format(f"{subject} {verb(1)}")])
        begins = self.rng.choice(["begins to", "starts to", "is about to"])
        return _Core([f"{subject} {begins} {verb(2)}"])

    def presence(self, subject: str) -> _Core:
        """Somebody is there, and nothing is said of what happens."""
        lead = self.rng.choice(["{}", "{}", "there is {}", "we see {}", "a picture of {}", "a view of {}"])
        return _Core([lead.format(subject)], subject)

    def several(self) -> _Core:
        """Two or more actors."""
        scene, rng = self.scene, self.rng
        acting = sorted((n for n in scene.actors if scene.actions[n]), key=lambda n: scene.actions[n][0].start)
        waiting = [name for name in scene.actors if not scene.actions[name]]
        rng.shuffle(waiting)
        if not acting:
            return self.gathered(waiting)
        partners = {action.other for name in acting for action in scene.actions[name]}
        clauses: list[str] = []
        previous_end = 0.0
        nominal_form = len(acting) == 1 and len(scene.actions[acting[0]]) == 1 and self.speaker.chance(0.3)
        for name in acting:
            actions = scene.actions[name]
            subject = self.noun(name)
            verbs = [self.verb(action, 1 if nominal_form else 0) for action in actions]
            text = f"{subject} {verbs[0]}" + "".join(f", then {verb}" for verb in verbs[1:])
            if clauses:
                later = actions[0].start >= previous_end - 0.2
                joint = (
                    rng.choice([". then ", ", then ", ". after that "])
                    if later
                    else rng.choice([" while ", ", and ", ". meanwhile ", " as ", ". at the same time "])
                )
                text = joint + text
            previous_end = max(previous_end, *(action.end for action in actions))
            clauses.append(text)
        nominal = clauses[0] if nominal_form else None
        rest = [name for name in waiting if name not in partners]
        merely_there = False  # after "there is also a cube", ", and a cone rests" would read as both resting
        for name in rest:
            way = rng.random()
            if way < 0.4 and len(acting) == 1:
                clauses.append(" " + self.speaker.pick(COMPANIONS).replace("{other}", self.noun(name)))
                nominal = nominal + clauses[-1] if nominal else None
                continue
            nominal = None
            if name in scene.still and way < 0.8:
                joint = rng.choice([" while ", ". "] if merely_there else [" while ", ", and ", ". "])
                clauses.append(f"{joint}{self.noun(name)} {self.still_verb(name, 0)}")
                merely_there = False
            else:
                merely_there = True
                clauses.append(rng.choice([". there is also ", ". nearby is ", ". we also see "]) + self.noun(name))
        for name in waiting:
            if name in partners and name in scene.still and self.speaker.chance(0.2):
                nominal = None
                clauses.append(rng.choice([" while ", ". "]) + f"{self.noun(name)} {self.still_verb(name, 0)}")
        return _Core("".join(clauses).split(". "), nominal)

    def gathered(self, names: Sequence[str]) -> _Core:
        """Actors that all merely are there."""
        nouns = [self.noun(name) for name in names]
        everyone = _listed(nouns)
        if all(name in self.scene.still for name in names) and self.speaker.chance(0.5):
            verb = verb_forms(self.speaker.pick(ACTION_WORDS["still"], "action"))[2]
            verb = "are" + verb[2:] if verb.startswith("be ") else "do not move" if verb == "not move" else verb
            for name in names:
                self.speaker.note(self.scene.actors[name], "still")
            return _Core([f"{everyone} {verb}"])
        if len(nouns) == 2 and self.speaker.chance(0.4):
            text = f"{nouns[0]} {self.speaker.pick(COMPANIONS).replace('{other}', nouns[1])}"
            return _Core([text], text)
        lead = self.rng.choice(["{}", "there are {}", "we see {}", "a picture of {}"])
        return _Core([lead.format(everyone)], everyone)

    def tell(self) -> _Core:
        names = list(self.scene.actors)
        if not names:
            return _Core(
                [self.rng.choice(["an empty set", "an empty scene", "nobody is there", "an empty stage"])],
                "an empty scene",
            )
        return self.one(names[0]) if len(names) == 1 else self.several()


def describe(
    film: Film,
    shot: int,
    rng: Random,
    observations: Observed | None = None,
    wording: str = "train",
    level: str | None = None,
) -> Caption:
    """A caption of shot number `shot` (from 0) and the facts it says.

    `wording` is "train" or "heldout" (held-out phrases, which training never sees). `level` is "short" (actors and
    actions),
    "medium" or "long" (most of what can be told), drawn by default. Equal `rng` states give
    equal captions.
    """
    scene = _Scene(film, shot, observations)
    if level is None:
        level = rng.choices(("short", "medium", "long"), (0.42, 0.33, 0.25))[0]
    chance = {"short": 0.05, "medium": 0.38, "long": 0.8}[level]
    wanted = {name for name in SHOT_FACTS if rng.random() < chance and scene.told(name)}
    if not film.set.fog and rng.random() < 0.93:  # absence is rarely worth a word
        wanted.discard("fog")
    rich = {"short": 0.25, "medium": 0.6, "long": 0.9}[level]
    limit = 32 if len(scene.actors) < 2 else 42
    while True:
        caption = _compose(scene, _Speaker(rng, wording), wanted, rich)
        if len(caption.text.split()) <= limit or (not wanted and rich < 0.1):
            return caption
        if wanted:
            wanted.discard(rng.choice(sorted(wanted)))
        else:
            rich /= 2


def describe_shot(film: Film, k: int, rng: Random, observations: Observed | None = None, wording: str = "train") -> str:
    """The caption of shot number `k` (from 0): `describe(...).text`."""
    return describe(film, k, rng, observations, wording).text


_PREPOSITIONS = frozenset({"in", "at", "from", "with", "under", "as"})


def _compose(scene: _Scene, speaker: _Speaker, wanted: set[str], rich: float) -> Caption:
    film, rng = scene.film, speaker.rng
    camera = film.shots[scene.shot].camera
    core = _Teller(scene, speaker, rich).tell()
    before: list[str] = []  # whole sentences or tags before the core
    after: list[str] = []
    place: list[str] = []  # adverbials, with the set first
    if "floor" in wanted:
        place.append(f"on {speaker.pick(FLOOR_WORDS[film.set.floor], 'floor')}")
    if "sky" in wanted:
        place.append(speaker.pick(SKY_WORDS[film.set.sky], "floor"))
    if "fog" in wanted:
        place.append(speaker.pick(FOG_WORDS[film.set.fog]))
    if rng.random() < 0.3:
        rng.shuffle(place)
    manner: list[str] = []
    if "style" in wanted:
        manner.append(speaker.pick(STYLE_WORDS[film.set.style], "floor"))
    tag = ""
    if "shot_size" in wanted and rng.random() < 0.75:
        tag = speaker.pick(SHOT_SIZE_WORDS[camera.size], "floor")
        if "angle" in wanted and rng.random() < 0.5:
            tag = f"{speaker.pick(ANGLE_TAGS[camera.angle])} {tag}"
        elif "angle" in wanted:
            manner.append(speaker.pick(ANGLE_WORDS[camera.angle]))
    else:
        if "shot_size" in wanted:
            manner.append(speaker.pick(SHOT_SIZE_TAILS[camera.size]))
        if "angle" in wanted:
            manner.append(speaker.pick(ANGLE_WORDS[camera.angle]))
    rng.shuffle(manner)

    sentences = list(core.sentences)
    tag_first = True
    if tag:
        if core.nominal is not None and rng.random() < 0.8:
            sentences = [f"{tag} of {core.nominal}", *sentences[1:]]
        elif rng.random() < 0.8:
            sentences[0] = f"{tag}: {sentences[0]}"
        else:
            after.append(tag)
            tag_first = False
    if place:
        _set_place(sentences, before, after, place, rng, fronted=not (tag and tag_first))
    for text in manner:
        if rng.random() < 0.75:
            loose = text.split()[0] in _PREPOSITIONS and rng.random() < 0.3
            sentences[-1] += f" {text}" if loose else f", {text}"
        elif tag and tag_first:
            after.append(text)
        else:
            before.append(text)
    if "camera" in wanted:
        _set_camera(sentences, before, after, camera.move, speaker)
    text = " ".join(f"{capitalised(part)}." for part in [*before, *sentences, *after])
    facts = _said_facts(scene, speaker, wanted)
    return Caption(text, facts)


def _set_place(
    sentences: list[str], before: list[str], after: list[str], place: list[str], rng: Random, fronted: bool
) -> None:
    way = rng.random()
    if way < 0.25 and fronted:
        sentences[0] = f"{' '.join(place)}, {sentences[0]}"
    elif way < 0.37:
        before.append(f"{rng.choice(['the scene is', 'it all happens', 'we are', 'the set is'])} {' '.join(place)}")
    elif way < 0.47:
        after.append(
            f"{rng.choice(['the scene is', 'it all happens', 'everything happens', 'this is'])} {' '.join(place)}"
        )
    else:
        at = 0 if rng.random() < 0.5 else -1
        joint = ", " if rng.random() < 0.25 else " "
        sentences[at] += joint + " ".join(place)


def _set_camera(sentences: list[str], before: list[str], after: list[str], move: str, speaker: _Speaker) -> None:
    rng, way = speaker.rng, speaker.rng.random()
    if way < 0.35:
        tag = speaker.pick(CAMERA_TAGS[move])
        if rng.random() < 0.4:
            before.append(tag)
        else:
            after.append(tag if rng.random() < 0.7 else f"camera: {tag}")
        return
    phrase = f"the camera {verb_forms(speaker.pick(CAMERA_WORDS[move]))[0]}"
    if way < 0.5:
        before.append(phrase)
    elif way < 0.6 and ":" not in sentences[0] and " of " not in sentences[0]:
        sentences[0] = f"as {phrase}, {sentences[0]}"
    elif way < 0.8:
        sentences[-1] += f"{rng.choice([' while ', ' as ', ', and '])}{phrase}"
    else:
        after.append(phrase)


def _said_facts(scene: _Scene, speaker: _Speaker, wanted: set[str]) -> Facts:
    film, camera = scene.film, scene.film.shots[scene.shot].camera
    actors = []
    for name, said in speaker.said.items():
        own = [action for action in scene.actions[name] if action.kind in said.actions]
        core = core_action(own)
        if said.actions.count("change_colour") > 1:
            said = replace(said, new_colour=None)
        if core is None:
            said = replace(said, action="still" if "still" in said.actions else None)
        else:
            other = scene.actors[core.other].colour if core.other is not None else None
            said = replace(said, action=core.kind, other=other)
        actors.append(said)
    return Facts(
        actors=tuple(actors),
        camera=CAMERA_CLASS[camera.move] if "camera" in wanted else None,
        shot_size=camera.size if "shot_size" in wanted else None,
        angle=camera.angle if "angle" in wanted else None,
        floor=film.set.floor if "floor" in wanted else None,
        sky=film.set.sky if "sky" in wanted else None,
        style=film.set.style if "style" in wanted else None,
        fog=film.set.fog if "fog" in wanted else None,
    )


def describe_film(film: Film, rng: Random, wording: str = "train", observations: Observed | None = None) -> str:
    """The caption of the whole film: its cast (who recurs comes first), its set and its style; any part may be left
    unsaid.

    With `observations`, what cannot be told in any shot is not said.
    """
    speaker = _Speaker(rng, wording)
    scenes = [_Scene(film, k, observations) for k in range(len(film.shots))]
    shown = {name: sum(name in scene.actors for scene in scenes) for name in (actor.name for actor in film.cast)}
    cast = sorted((actor for actor in film.cast if shown[actor.name]), key=lambda actor: -shown[actor.name])
    nouns = []
    for actor in cast[:4]:
        theirs = [scene for scene in scenes if actor.name in scene.actors]
        nouns.append(
            speaker.noun(
                actor,
                0.7 if len(cast) < 3 else 0.4,
                size=any(scene.size_told(actor.name) for scene in theirs),
                surface=any(scene.surface_told(actor.name) for scene in theirs),
            )
        )
    everyone = _listed(nouns) if nouns else "an empty set"
    parts = []
    for name, words, often in (("floor", FLOOR_WORDS[film.set.floor], 0.8), ("sky", SKY_WORDS[film.set.sky], 0.75)):
        if any(scene.told(name) for scene in scenes) and rng.random() < often:
            parts.append(("on " if name == "floor" else "") + speaker.pick(words, "floor"))
    if film.set.fog and any(scene.told("fog") for scene in scenes) and rng.random() < 0.8:
        parts.append(speaker.pick(FOG_WORDS[True]))
    text = " ".join([rng.choice(_FILM_LEADS).format(everyone), *parts])
    if rng.random() < (0.35 if film.set.style == "realistic" else 0.85):
        text += f", {speaker.pick(STYLE_WORDS[film.set.style], 'floor')}"
    return f"{capitalised(text)}."


_FILM_LEADS = (
    "a film with {}",
    "a film about {}",
    "{}",
    "a short film with {}",
    "a video with {}",
    "a story about {}",
    "the film shows {}",
    "a scene with {}",
)


def _listed(nouns: Sequence[str]) -> str:
    return ", ".join(nouns[:-1]) + " and " + nouns[-1] if len(nouns) > 1 else nouns[0]


def event_query(film: Film, k: int, action: Action, rng: Random, wording: str = "train") -> str:
    """A query that asks a grounder for the moment of `action` in shot `k`: "the red cube jumps" in one of its
    wordings."""
    if action not in film.shots[k].actions:
        raise ValueError(
            f"action: {action} is not one of shot {k}'s actions; pass an action of film.shots[{k}].actions"
        )
    scene = _Scene(film, k, None)
    teller = _Teller(scene, _Speaker(rng, wording), 0.3)
    subject = teller.noun(action.actor, definite=rng.random() < 0.7)
    form = 0 if rng.random() < 0.75 else 1
    verb = teller.still_verb(action.actor, form) if action.kind == "still" else teller.verb(action, form)
    return f"{subject} {verb}"
