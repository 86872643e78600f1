"""The results of the benchmark of neurons as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench.neurons import planted
from bench.neurons.floor import TEXTS, TOKENS
from bench.neurons.pronouns import USUAL, Movement, movement

Results = dict[str, Any]
# What it is, measured, must, and whether the must holds.
Row = tuple[str, str, str, bool]

MODELS = {"gpt2": "GPT-2 small shape", "stories": "stories260K"}
TIMES_FLOOR, TIMES_FLOOR_PEAK = 1.3, 1.2
FLAT, TIMES_CONTROLS = 0.1, 5.0
SHOWN_SIZES = ("1", "2", "4", "8", "16", "32")
DIRECTIONS = {1.0: "she", -1.0: "he"}

# What must be equal, how exactly, and the tests that fail where it is not: modules below tests/.
EQUALITIES = (
    (
        "sums and histograms that are added up part by part, and those of all activations at once",
        "1e-12; counts exactly",
        {
            "engine/activations/test_against_twins.py": ("test_sums", "test_details"),
            "engine/activations/test_reducers.py": ("test_sums_in_parts", "test_details_in_parts"),
        },
    ),
    (
        "texts that run together, and each alone",
        "every bit",
        {
            "engine/activations/test_bits.py": (
                "test_alone_and_together",
                "test_long_texts_alone_and_together",
                "test_random_lengths",
            )
        },
    ),
    (
        "steering with strength 0, and the model as it is",
        "every bit",
        {
            "engine/activations/test_bits.py": ("test_steering_of_nothing_changes_no_bit",),
            "client/test_steered_samples.py": ("test_strength_0_is_no_steering",),
        },
    ),
)


def tables(results: Results) -> dict[str, list[str]]:
    """All tables by the names of their places in the documentation."""
    return {
        "neurons": targets(results),
        "neurons-planted": by_size(results),
        "neurons-pronouns": by_strength(results),
        "neurons-settings": by_setting(results),
        "neurons-single": by_neuron(results),
        "neurons-equal": equalities(),
    }


def markdown(results: Results) -> str:
    """All tables, and where the figures were measured."""
    lines = [line for table in tables(results).values() for line in (*table, "")]
    machines = sorted({each["measured_on"] for each in results.values()})
    return "\n".join([*lines, *(f"Measured on: {each}." for each in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line. A part that has not been measured has no rows."""
    lines = ["| what | measured | must | holds |", "|---|---|---|---|"]
    parts: tuple[Callable[[Results], Iterator[Row]], ...] = (_planted, _pronouns, _costs)
    return lines + [
        f"| {what} | {value} | {must} | {'yes' if holds else 'no'} |"
        for part in parts
        for what, value, must, holds in part(results)
    ]


def by_size(results: Results) -> list[str]:
    """Planted neurons: what is found and what steering does, for some sizes."""
    strengths = " | ".join(f"{strength:g}" for strength in planted.STRENGTHS)
    lines = [
        f"| planted on either side | precision | recall | {strengths} | largest control |",
        f"|---|---|---|{'---|' * len(planted.STRENGTHS)}---|",
    ]
    for k, own in _part(results, "planted").items():
        if k in SHOWN_SIZES:
            values = " | ".join(f"{value:+.2f}" for value in own["values"])
            found = f"{own['precision']:.2f} | {own['recall']:.2f}"
            lines.append(f"| {k} | {found} | {values} | {_largest_control(own):.1%} |")
    return lines


def by_strength(results: Results) -> list[str]:
    """tinytalk, held-out prompts: how far sets and random ones move the pronouns, for each strength."""
    lines = [
        "| located by, strength | towards | after prompts of | nats | random sets, mean | largest | times |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in _part(results, "pronouns").get("held_out", {}).items():
        for strength in own["strengths"]:
            for side in ("she", "he") if strength else ():
                moved, towards = movement(own, strength, [side]), "she" if strength > 0 else "he"
                cells = f"{moved.own:+.2f} | {moved.mean:.2f} | {moved.largest:.2f} | {moved.times:.1f}"
                lines.append(f"| {name}, {strength:+g} | {towards} | {side} | {cells} |")
    return lines


def by_setting(results: Results) -> list[str]:
    """tinytalk: what every setting that was tried gives on the prompts by which one was chosen."""
    heads = [
        f"towards {towards}, after prompts of {side}"
        for towards in DIRECTIONS.values()
        for side in ("she", "he")
    ]
    lines = [f"| located by | raised, lowered | {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for name, own in _part(results, "pronouns").get("tried", {}).items():
        moved = [movement(own, strength, [side]) for strength in DIRECTIONS for side in ("she", "he")]
        cells = " | ".join(f"{each.own:+.2f} ({each.times:.1f})" for each in moved)
        raised, lowered = own["neurons"]
        lines.append(f"| {name} | {raised}, {lowered} | {cells} |")
    return lines


def by_neuron(results: Results) -> list[str]:
    """tinytalk: what raising one neuron does, of those that differ most."""
    lines = [
        "| neuron | active at tokens of girls' stories | of boys' | raised alone: nats towards she, "
        "after prompts of she | of he |",
        "|---|---|---|---|---|",
    ]
    for own in _part(results, "pronouns").get("singles", ()):
        strength = own["strength"]
        towards = (strength * movement(own, strength, [side]).own for side in ("she", "he"))
        shares = f"{own['she_share']:.0%} | {own['he_share']:.0%}"
        lines.append(f"| `{own['name']}` | {shares} | {' | '.join(f'{each:+.2f}' for each in towards)} |")
    return lines


def equalities() -> list[str]:
    """What tests hold equal, and their names."""
    lines = ["| what is equal | how exactly | tests |", "|---|---|---|"]
    for what, how, modules in EQUALITIES:
        named = "; ".join(f"`tests/{module}`: {', '.join(names)}" for module, names in modules.items())
        lines.append(f"| {what} | {how} | {named} |")
    return lines


def _planted(results: Results) -> Iterator[Row]:
    sizes = _part(results, "planted")
    if not sizes:
        return
    what = f"planted neurons, {min(map(int, sizes))} to {max(map(int, sizes))} on either side"
    for figure in ("precision", "recall"):
        least = min(own[figure] for own in sizes.values())
        yield f"{what}: {figure} of either side, least", f"{least:.2f}", "1", least == 1
    monotone = sum(own["values"] == sorted(set(own["values"])) for own in sizes.values())
    yield f"{what}: dose-response rises", str(monotone), str(len(sizes)), monotone == len(sizes)
    largest = max(map(_largest_control, sizes.values()))
    what = f"{what}: largest effect of {planted.CONTROLS} random sets / the set's"
    yield what, f"{largest:.1%}", f"≤ {FLAT:.0%}", largest <= FLAT


def _largest_control(own: dict[str, Any]) -> float:
    """The largest effect from the lowest to the highest strength, as a share of the set's."""
    effect, *others = (values[-1] - values[0] for values in (own["values"], *own["controls"]))
    return max(map(abs, others)) / effect


def _pronouns(results: Results) -> Iterator[Row]:
    figures = _part(results, "pronouns")
    for name, own in figures.get("held_out", {}).items():
        how = "defaults" if name == USUAL.name else f"{name}, chosen among {len(figures['tried'])} settings"
        for strength, towards in DIRECTIONS.items():
            moved: Movement = movement(own, strength)
            yield (
                f"tinytalk, {how}: towards {towards} with strength {strength:+g} / mean of random sets",
                f"{moved.times:.1f}",
                f"≥ {TIMES_CONTROLS:g}",
                moved.times >= TIMES_CONTROLS,
            )


def _costs(results: Results) -> Iterator[Row]:
    for part, name in MODELS.items():
        own, what = _part(results, part), f"{name}, {TEXTS} x {TOKENS} tokens, sums of all neurons"
        if not own:
            continue
        for of, figure, must in (
            ("CPU seconds", own["times_floor"], TIMES_FLOOR),
            ("peak memory above the model without the sums", own["times_floor_peak"], TIMES_FLOOR_PEAK),
        ):
            yield f"{what}: {of} / plain transformers", f"{figure:.2f}", f"≤ {must:g}", figure <= must


def _part(results: Results, name: str) -> dict[str, Any]:
    figures: dict[str, Any] = results.get(name, {"figures": {}})["figures"]
    return figures
