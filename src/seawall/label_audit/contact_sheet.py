"""The contact sheet of suspect chips: a picture, and a page on which a person records a verdict per chip."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, ByteArray
from seawall.geo.preview import rgb_composite
from seawall.io import write_atomic
from seawall.report.images import CLASS_COLORS, data_url, encode_png, thin_out

PANEL_SIDE = 192
"""Side of a panel in pixels."""
SUSPECT_COLOR = (214, 40, 40)
NO_DATA_COLOR = (128, 128, 128)
PANEL_TITLES = ("image", "label as given", "what the model expects", "suspect pixels")


@dataclass(frozen=True)
class ContactCard:
    """One chip of the sheet.

    Args:
        row: Its row of the ranked list.
        image: (C, H, W) in data units.
        label: (H, W) as given.
        guess: (H, W) predicted classes.
        seen: (H, W) pixels with data.
        valid: (H, W) pixels with a label that counts.
        wrong: (H, W) suspect pixels.
        bands: Band ids of the image.
    """

    row: Mapping[str, str | int | float | None]
    image: NDArray[np.float32]
    label: NDArray[np.int64]
    guess: NDArray[np.int64]
    seen: BoolArray
    valid: BoolArray
    wrong: BoolArray
    bands: tuple[str, ...]

    def panels(self) -> list[ByteArray]:
        """Return four pictures (H, W, 3): image, label, guess, and the suspect pixels over the image."""
        picture = rgb_composite(self.image, self.seen, self.bands, unseen=NO_DATA_COLOR[0])
        over = (picture.astype(np.float32) * 0.55).astype(np.uint8)
        over[self.wrong] = SUSPECT_COLOR
        return [picture, _class_colors(self.label, self.valid), _class_colors(self.guess, self.seen), over]

    def caption(self) -> str:
        """Return the figures of the chip in one line."""
        row = self.row
        parts = [f"{row['rank']}. {row['chip']}", f"{_percent_text(row['issue_share'])} suspect"]
        if row.get("evidence") is not None:
            parts.insert(1, f"evidence {float(row['evidence'] or 0):.1f}")
        if row.get("group"):
            parts.insert(1, f"group {row['group']}")
        if row.get("shift_gain"):
            parts.append(f"fits better by {float(row['shift_gain'] or 0):.2f} moved {_shift_text(row)}")
        if row.get("rule_agreement") is not None:
            parts.append(f"{_percent_text(row['rule_agreement'])} agrees with the rule")
        if row.get("aum") is not None:
            parts.append(f"margin {float(row['aum'] or 0):.2f}")
        return "   ".join(parts)


def write_contact_sheet(out: Path, cards: Sequence[ContactCard], classes: Sequence[str], source: str) -> Path:
    """Write `sheet.png` and `sheet.html`, which needs nothing else, and return the page."""
    write_atomic(out / "sheet.png", encode_png(montage(cards, classes)))
    rows = "\n".join(_card_html(card) for card in cards)
    legend = " ".join(
        f'<span><i style="background:rgb{CLASS_COLORS[k % len(CLASS_COLORS)][:3]}"></i>{html.escape(name)}</span>'
        for k, name in enumerate(classes)
    )
    heads = "".join(f"<span>{title}</span>" for title in PANEL_TITLES)
    page = _SHEET_PAGE.format(source=html.escape(source), count=len(cards), legend=legend, heads=heads, rows=rows)
    path = out / "sheet.html"
    write_atomic(path, page)
    return path


def montage(cards: Sequence[ContactCard], classes: Sequence[str]) -> ByteArray:
    """Return one picture: titles and a legend, then a line of four panels per chip under its caption."""
    gap, head, top = 6, 22, 44
    sheet = np.full(
        (top + len(cards) * (PANEL_SIDE + head + gap) + gap, 4 * (PANEL_SIDE + gap) + gap, 3), 255, np.uint8
    )
    for column, title in enumerate(PANEL_TITLES):
        _draw_text(sheet, title, gap + column * (PANEL_SIDE + gap), 15, PANEL_SIDE)
    legend = [(name, CLASS_COLORS[k % len(CLASS_COLORS)][:3]) for k, name in enumerate(classes)]
    legend += [("no label or no data", NO_DATA_COLOR), ("suspect", SUSPECT_COLOR)]
    step = (sheet.shape[1] - gap) // len(legend)
    for number, (name, color) in enumerate(legend):
        left = gap + number * step
        sheet[23:37, left : left + 14] = color
        _draw_text(sheet, name, left + 20, 35, step - 24)
    for number, card in enumerate(cards):
        row = top + gap + number * (PANEL_SIDE + head + gap)
        _draw_text(sheet, card.caption(), gap, row + 15, sheet.shape[1] - 2 * gap)
        for column, panel in enumerate(card.panels()):
            left = gap + column * (PANEL_SIDE + gap)
            sheet[row + head : row + head + PANEL_SIDE, left : left + PANEL_SIDE] = _fit_square(panel)
    return sheet


def _draw_text(sheet: ByteArray, text: str, left: int, baseline: int, width: int) -> None:
    """Draw a line of text, made smaller where it would be wider than there is room."""
    text = text.encode("ascii", "replace").decode()  # the font has ASCII only
    needed = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
    size = 0.45 * min(1.0, width / max(needed, 1))
    cv2.putText(sheet, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, size, (20, 20, 20), 1, cv2.LINE_AA)


def _shift_text(row: Mapping[str, str | int | float | None]) -> str:
    down, right = int(row.get("shift_rows") or 0), int(row.get("shift_cols") or 0)
    parts = [
        f"{abs(n)} px {one if n > 0 else other}"
        for n, one, other in ((down, "down", "up"), (right, "right", "left"))
        if n
    ]
    return " and ".join(parts)


def _fit_square(panel: ByteArray) -> ByteArray:
    """Fit a panel into a square without blending: a class map has no colors in between."""
    height, width = panel.shape[:2]
    scale = PANEL_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(panel, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    made = np.full((PANEL_SIDE, PANEL_SIDE, 3), 255, np.uint8)
    made[: small.shape[0], : small.shape[1]] = small
    return made


def _class_colors(labels: NDArray[np.int64], known: BoolArray) -> ByteArray:
    colors = np.array([color[:3] for color in CLASS_COLORS], np.uint8)
    made: ByteArray = colors[labels.clip(0) % len(CLASS_COLORS)]
    made[~known] = NO_DATA_COLOR
    return made


def _card_html(card: ContactCard) -> str:
    pictures = "".join(
        f'<img alt="{title}" src="{data_url(thin_out(panel, 256))}">'
        for title, panel in zip(PANEL_TITLES, card.panels(), strict=True)
    )
    chip = html.escape(str(card.row["chip"]))
    choices = "".join(
        f'<label><input type="radio" name="{chip}" value="{value}"> {value}</label>'
        for value in ("wrong", "right", "unsure")
    )
    return f'<section><h2>{html.escape(card.caption())}</h2><div class="panels">{pictures}</div><p>The label is {choices}</p></section>'


def _percent_text(value: str | int | float | None) -> str:
    return "-" if value is None else f"{100 * float(value):.1f} %"


_SHEET_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Suspect labels of {source}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1b1b; background: #fff }}
h1 {{ font-size: 1.4rem }} h2 {{ font-size: 1rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere }}
.panels, .heads {{ display: grid; grid-template-columns: repeat(4, 1fr); gap: .4rem }}
.heads {{ position: sticky; top: 0; background: #fff; padding: .4rem 0; font-weight: 600; font-size: .85rem }}
img {{ width: 100%; image-rendering: pixelated; border: 1px solid #ccc }}
i {{ display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; border: 1px solid #555 }}
label {{ margin-left: .8rem }} textarea {{ width: 100%; height: 8rem }}
</style></head><body>
<h1>The {count} chips whose labels look most wrong</h1>
<p>Chips of {source}. Each chip is predicted by a model that was not trained on it.
Red pixels: the given label has a low probability and another class a higher one. A suspect pixel may be right: look at it.</p>
<p>Classes: {legend} <span><i style="background:rgb(128,128,128)"></i>no label or no data</span></p>
<div class="heads">{heads}</div>
{rows}
<h2>Your verdicts</h2>
<p>They stay in this browser. Copy them from here:</p>
<textarea readonly></textarea>
<script>
const key = "seawall-verdicts " + document.title, box = document.querySelector("textarea");
let verdicts = {{}};
try {{ verdicts = JSON.parse(localStorage.getItem(key) || "{{}}") }} catch (blocked) {{}}
const show = () => box.value = JSON.stringify(verdicts, null, 1);
document.querySelectorAll("input").forEach(one => {{
  one.checked = verdicts[one.name] === one.value;
  one.addEventListener("change", () => {{
    verdicts[one.name] = one.value;
    try {{ localStorage.setItem(key, JSON.stringify(verdicts)) }} catch (blocked) {{}}
    show();
  }});
}});
show();
</script>
</body></html>
"""
