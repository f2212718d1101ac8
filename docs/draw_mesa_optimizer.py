"""Draw docs/images/mesa-optimizer.svg, the figure of "What is a mesa-optimizer?".

python docs/draw_mesa_optimizer.py
"""

from pathlib import Path

OUT = Path(__file__).parent / "images" / "mesa-optimizer.svg"
INK, BLUE, ORANGE, PALE, LIGHT = "#1f2933", "#1f5fa8", "#b3520b", "#e8f0fa", "#fdf1e6"


def main() -> None:
    """Write the figure."""
    OUT.write_text(figure())


def figure() -> str:
    """Return the figure: the model on the left, and what happens inside one of its layers on the right."""
    parts = [*model(), *learning_problem()]
    # Its own white ground keeps it legible on a dark page.
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 30 780 366" role="img" '
        'font-family="sans-serif" font-size="14">\n'
        "<title>A sequence model with a learning problem inside a layer</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>\n'
        '<rect y="30" width="780" height="366" rx="10" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def model() -> list[str]:
    """Draw tokens, layers and the prediction, from the bottom to the top."""
    tokens = [box(30 + 60 * i, 320, 48, 34, PALE, BLUE, f"s{n}") for i, n in enumerate("₁₂₃ₜ")]
    layers = [box(30, y, 228, 40, PALE, BLUE, text) for y, text in LAYERS]
    rises = [arrow(144, below, 144, above) for below, above in ((318, 284), (238, 212), (166, 132))]
    return [
        *tokens,
        *layers,
        *rises,
        box(84, 88, 120, 40, "#ffffff", BLUE, "prediction"),
        label(144, 376, "the context: tokens so far"),
        label(144, 60, "The model: weights from training", bold=True),
    ]


LAYERS = ((242, "layer"), (170, "layer with a mesa-optimizer"))


def learning_problem() -> list[str]:
    """Draw the four parts of the problem that a layer solves."""
    rows = (
        (100, "data", "pairs (s₁, s₂), (s₂, s₃), ... from the context"),
        (162, "loss", "½ Σ |next − Φ · state|²"),
        (224, "step", "Φ ← Φ − η · gradient, once or many times"),
        (286, "answer", "Φ · sₜ, written for the next layer"),
    )
    drawn = [
        f'<path d="M262 190 L318 80 M262 190 L318 350" stroke="{ORANGE}" stroke-dasharray="4 4"/>',
        box(320, 76, 436, 278, LIGHT, ORANGE, ""),
        label(538, 60, "Inside: learning, anew for every sequence", bold=True),
    ]
    for y, name, text in rows:
        drawn += [
            box(336, y, 78, 42, "#ffffff", ORANGE, name),
            label(428, y + 26, text, anchor="start"),
        ]
    drawn += [arrow(375, y + 42, 375, y + 60) for y, *_ in rows[:-1]]
    return drawn


def box(x: int, y: int, width: int, height: int, fill: str, line: str, text: str) -> str:
    """Return a rectangle with a text in it."""
    shape = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" '
        f'stroke="{line}" stroke-width="1.5"/>'
    )
    return shape + (label(x + width // 2, y + height // 2 + 5, text) if text else "")


def label(x: int, y: int, text: str, *, bold: bool = False, anchor: str = "middle") -> str:
    """Return a line of text."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{INK}"{weight}>{text}</text>'


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """Return a line with a tip at its end."""
    line = f'x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5"'
    return f'<line {line} marker-end="url(#tip)"/>'


if __name__ == "__main__":
    main()
