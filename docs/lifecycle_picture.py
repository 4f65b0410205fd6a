"""Draw the lifecycle of a job from its transition table; run as a script it writes the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from musicgpt_async._rules.lifecycle import TERMINAL, TRANSITIONS, Trigger
from musicgpt_async.models import JobState

PICTURE = Path(__file__).parent / "pictures" / "lifecycle.svg"

# Pixels: a card for each state that is not an end, in a row, with arrows above and below.
CARD, GAP, LINE, LANE, MARGIN = 214, 30, 19, 30, 12
ACTIVE = [state for state in TRANSITIONS if state not in TERMINAL]
STYLE = """\
  text { font: 14px system-ui, sans-serif; fill: #1c2733 }
  .state { font-weight: 600; font-size: 15px }
  .label { font-size: 13px; fill: #45505c }
  .over { paint-order: stroke; stroke: #fff; stroke-width: 5px; stroke-linejoin: round }
  .card { fill: #f4f7f9; stroke: #8a97a5 }
  .arrow { fill: none; stroke: #0b6e4f; stroke-width: 1.5 }
  .head { fill: #0b6e4f }
  .back { stroke: #b3541e }
  .backhead { fill: #b3541e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6ebf0 }
    .label { fill: #b5c0cb }
    .over { stroke: #131416 }
    .card { fill: #20272e; stroke: #66727e }
    .arrow { stroke: #4cc38a }
    .head { fill: #4cc38a }
    .back { stroke: #f0975a }
    .backhead { fill: #f0975a }
  }"""


def draw() -> str:
    """Return the picture as SVG: a card for each active state, an arrow for each change."""
    arrows = [(a, b, trigger) for a, b, trigger in _changes() if b not in TERMINAL]
    forward = _lanes([each for each in arrows if _index(each[0]) < _index(each[1])])
    back = _lanes([each for each in arrows if _index(each[0]) > _index(each[1])])
    top = MARGIN + LANE * (1 + max(lane for *_, lane in forward))
    height = 40 + LINE * max(len(_ends(state)) for state in ACTIVE)
    bottom = top + height
    full_height = bottom + LANE * (1 + max(lane for *_, lane in back)) + MARGIN
    width = 2 * MARGIN + len(ACTIVE) * CARD + (len(ACTIVE) - 1) * GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {full_height}">',
            "<title>The states of a job and what leads from one to the next</title>",
            f"<style>\n{STYLE}\n</style>",
            *(line for state in ACTIVE for line in _card(state, top, height)),
            *sorted(  # labels last, over the lines of other arrows
                [
                    *(line for arrow in forward for line in _arrow(*arrow, y=top, up=True)),
                    *(line for arrow in back for line in _arrow(*arrow, y=bottom, up=False)),
                ],
                key=lambda line: line.startswith("<text"),
            ),
            "</svg>\n",
        ]
    )


def _changes() -> Iterator[tuple[JobState, JobState, Trigger]]:
    for state, row in TRANSITIONS.items():
        for trigger, step in row.items():
            if step.state is not state:
                yield state, step.state, trigger


def _ends(state: JobState) -> list[tuple[JobState, Trigger]]:
    return [(b, trigger) for a, b, trigger in _changes() if a is state and b in TERMINAL]


def _index(state: JobState) -> int:
    return ACTIVE.index(state)


def _lanes(
    arrows: list[tuple[JobState, JobState, Trigger]],
) -> list[tuple[JobState, JobState, Trigger, int]]:
    """Put short arrows near the cards, and no two of one lane over each other."""
    placed: list[tuple[JobState, JobState, Trigger, int]] = []
    taken: list[list[tuple[int, int]]] = []
    for a, b, trigger in sorted(arrows, key=lambda each: abs(_index(each[0]) - _index(each[1]))):
        span = min(_index(a), _index(b)), max(_index(a), _index(b))
        lane = next(
            (
                number
                for number, spans in enumerate(taken)
                if all(span[1] <= left or right <= span[0] for left, right in spans)
            ),
            len(taken),
        )
        taken[lane : lane + 1] = [[*(taken[lane] if lane < len(taken) else []), span]]
        placed.append((a, b, trigger, lane))
    return placed


def _card(state: JobState, top: int, height: int) -> Iterator[str]:
    left = MARGIN + _index(state) * (CARD + GAP)
    yield f'<rect class="card" x="{left}" y="{top}" width="{CARD}" height="{height}" rx="8"/>'
    yield f'<text class="state" x="{left + 12}" y="{top + 24}">{state}</text>'
    for number, (end, trigger) in enumerate(_ends(state)):
        y = top + 46 + LINE * number
        words = f"{trigger} → {end}" if trigger.value != end.value else f"→ {end}"
        yield f'<text class="label" x="{left + 12}" y="{y}">{escape(words)}</text>'


def _arrow(
    a: JobState, b: JobState, trigger: Trigger, lane: int, *, y: int, up: bool
) -> Iterator[str]:
    sign = -1 if up else 1
    # Arrows that begin or end at one card do so side by side.
    x1 = MARGIN + _index(a) * (CARD + GAP) + CARD / 2 + (12 + 18 * lane) * (1 if up else -1)
    x2 = MARGIN + _index(b) * (CARD + GAP) + CARD / 2 - (12 + 18 * lane) * (1 if up else -1)
    level = y + sign * (LANE * (lane + 1) - 8)
    kind = ("", "") if up else (" back", "back")
    yield f'<path class="arrow{kind[0]}" d="M{x1:g} {y} V{level} H{x2:g} V{y + sign * 7}"/>'
    yield f'<path class="{kind[1]}head" d="M{x2:g} {y} l-4 {sign * 8} h8 z"/>'
    place = level - 5 if up else level + 14
    yield (
        f'<text class="label over" x="{(x1 + x2) / 2:g}" y="{place}" text-anchor="middle">'
        f"{trigger}</text>"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), "utf-8")
