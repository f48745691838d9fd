"""Print the diagram of an entry's states, in Mermaid, from the table that the core goes by."""

from __future__ import annotations

from millpond._core.entry import TRANSITIONS


def diagram() -> str:
    """Return the diagram's text."""
    lines = ["stateDiagram-v2", "    [*] --> opening"]
    lines += [
        f"    {state.value} --> {after.value}"
        for state, afters in TRANSITIONS.items()
        for after in sorted(afters, key=list(TRANSITIONS).index)
    ]
    lines += [f"    {state.value} --> [*]" for state, afters in TRANSITIONS.items() if not afters]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())  # noqa: T201
