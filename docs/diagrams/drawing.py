"""Shapes of the diagrams, as SVG text that is the same on every machine."""

from collections.abc import Sequence
from html import escape

INK, MUTED, LINE, PAPER, EDGE = "#1f2937", "#5b6575", "#94a3b8", "#ffffff", "#d0d7de"
BLUE, GREEN, ORANGE, VIOLET = "#2563eb", "#15803d", "#c2410c", "#7c3aed"
GRAY, RED = "#64748b", "#dc2626"
PALE = {
    BLUE: "#dbeafe",
    GREEN: "#dcfce7",
    ORANGE: "#ffedd5",
    VIOLET: "#ede9fe",
    GRAY: "#f1f5f9",
    RED: "#fee2e2",
}
"""Fill that goes with the colour of an outline."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

Point = tuple[float, float]
Area = tuple[float, float, float, float]
"""Left and upper edge, width and height."""


class Drawing:
    """A picture on a white card, which a dark page leaves legible."""

    def __init__(self, width: int, height: int, title: str) -> None:
        size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{_FONT}">',
            f"<title>{escape(title)}</title>",
        ]
        self._heads: dict[str, str] = {}
        self.rect((0.5, 0.5, width - 1, height - 1), PAPER, EDGE, radius=10)

    def rect(
        self,
        area: Area,
        fill: str,
        stroke: str = "none",
        *,
        radius: float = 6,
        dash: str = "",
        width: float = 1.5,
    ) -> None:
        """Rectangle with rounded corners."""
        x, y, w, h = area
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="{width:g}"{dashed}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        size: float = 13,
        color: str = INK,
        anchor: str = "middle",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """One line of text whose baseline is at y."""
        weight = ' font-weight="600"' if bold else ""
        family = f' font-family="{_MONO}"' if mono else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" '
            f'text-anchor="{anchor}"{weight}{family}>{escape(content, quote=False)}</text>'
        )

    def box(
        self,
        area: Area,
        color: str,
        title: str,
        lines: Sequence[str] = (),
        *,
        mono: bool = False,
        size: float = 15,
    ) -> None:
        """Box with a title and smaller lines below it, centred."""
        x, y, w, h = area
        self.rect(area, PALE[color], color)
        step = 17
        top = y + h / 2 + 5 - step * len(lines) / 2
        self.text(x + w / 2, top, title, size=size, bold=True, color=color)
        for number, line in enumerate(lines, start=1):
            small = 11.5 if mono else 12.5
            self.text(x + w / 2, top + step * number, line, size=small, mono=mono)

    def cells(
        self,
        x: float,
        y: float,
        fills: Sequence[str | None],
        *,
        w: float = 22,
        h: float = 20,
        labels: Sequence[str] = (),
    ) -> None:
        """Row of cells: the colour of each, or None for one without content."""
        for number, color in enumerate(fills):
            left = x + number * w
            if color is None:
                self.rect((left, y, w - 2, h), PAPER, LINE, radius=3, dash="3 3", width=1)
            else:
                self.rect((left, y, w - 2, h), PALE[color], color, radius=3, width=1.2)
            if number < len(labels):
                self.text(left + w / 2 - 1, y + h / 2 + 4.5, labels[number], size=12, mono=True)

    def arrow(
        self,
        *points: Point,
        color: str = GRAY,
        dash: str = "",
        width: float = 2,
        curved: bool = False,
    ) -> None:
        """Arrow along points; a curved one has a start, one or two controls and an end."""
        self._heads[color] = f"head{color[1:]}"
        (x, y), *rest = points
        order = {2: "Q", 3: "C"}.get(len(rest), "L") if curved else "L"
        steps = " ".join(f"{px:g},{py:g}" for px, py in rest)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<path d="M {x:g},{y:g} {order} {steps}" fill="none" stroke="{color}" '
            f'stroke-width="{width:g}"{dashed} marker-end="url(#{self._heads[color]})"/>'
        )

    def line(self, start: Point, end: Point, color: str = LINE, dash: str = "") -> None:
        """Thin line."""
        (x1, y1), (x2, y2) = start, end
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" '
            f'stroke-width="1.5"{dashed}/>'
        )

    def kill(self, x: float, y: float, size: float = 6) -> None:
        """Cross of a process that is killed."""
        for dx in (size, -size):
            self._parts.append(
                f'<line x1="{x - dx:g}" y1="{y - size:g}" x2="{x + dx:g}" y2="{y + size:g}" '
                f'stroke="{RED}" stroke-width="2.6" stroke-linecap="round"/>'
            )

    def svg(self) -> str:
        """Text of the SVG file."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="9" '
            f'markerHeight="9" orient="auto-start-reverse" markerUnits="userSpaceOnUse" '
            f'overflow="visible"><path d="M -1,-1 L 10,5 L -1,11 z" fill="{color}"/></marker>'
            for color, name in sorted(self._heads.items())
        )
        start, title, *rest = self._parts
        return "\n".join([start, title, f"<defs>{heads}</defs>", *rest, "</svg>"]) + "\n"
