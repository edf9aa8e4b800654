"""`phaseline bottleneck`: what limits the fleet now, with the numbers that say so."""

from __future__ import annotations

from control.cli.shell import JsonFlag, connect, print_json, print_table, say, seconds
from control.types.bottleneck import Bottleneck, EvidenceLine, Resource


def bottleneck(as_json: JsonFlag = False) -> None:
    """What limits now: the resource of which one more unit would let most more requests be good. n/a is unknown."""
    with connect() as client:
        found = client.bottleneck()
    print_json(found) if as_json else _show(found)


def _show(found: Bottleneck) -> None:
    say(found.text + (" (simulated workers)" if found.simulated else ""))
    say(f"for {seconds(found.at_unix_s - found.since_unix_s) or 0}; requests of the last {found.window_s:g} s")
    if found.gains:
        from control.bottleneck_words import UNITS  # brings numpy, which no other verb needs

        gains = [(UNITS[Resource(name)], f"{gain:.1%}") for name, gain in found.gains.items()]
        print_table(("estimated gain of", "more good requests"), gains, right=("more good requests",))
    rows = [(each.name, _value(each), each.provenance, each.text) for each in found.evidence]
    print_table(("evidence", "value", "source", "meaning"), rows, right=("value",))


def _value(line: EvidenceLine) -> str | None:
    if line.value is None:
        return None
    match line.unit:
        case "fraction":
            return f"{line.value:.1%}"
        case "s":
            return seconds(line.value)
        case _:
            return f"{line.value:.3g} {line.unit}"
