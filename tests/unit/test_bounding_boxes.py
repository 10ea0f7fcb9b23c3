"""Tables of coordinates: read, or refused with the line named."""

from pathlib import Path

import pytest

from seawall.errors import DataError
from seawall.imagery.bounding_boxes import BoundingBox, read_bounding_boxes


def write(folder: Path, text: str) -> Path:
    (folder / "boxes.csv").write_text(text, encoding="utf-8")
    return folder / "boxes.csv"


def test_columns_in_any_order_and_case(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffName, TOP,bottom,left,right\nLake A/1, 50.2,50.1,10.0,10.2\n,1,0,2,3\n")
    first, second = read_bounding_boxes(path)
    assert first == BoundingBox("Lake-A-1", 10.0, 10.2, 50.2, 50.1)
    assert first.bounds == (10.0, 50.1, 10.2, 50.2)
    assert second.name == "box2"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "expected a column 'left', got nothing"),
        ("left,right,top,name\n", "column 'bottom'"),
        ("lefft,right,top,bottom,name\n1,2,3,4,a\n", "column 'left', got lefft"),
        ("left,right,top,bottom,name\n", "expected boxes, got none"),
        ("left,right,top,bottom,name\n1,2,4,3,a\n1,x,4,3,b\n", r"csv:3: expected a number in 'right', got 'x'"),
        ("left,right,top,bottom,name\n1,2,4\n", r"csv:2: expected a number in 'bottom', got ''"),
        ("left,right,top,bottom,name\n1,nan,4,3,a\n", "got 'nan'"),
        ("left,right,top,bottom,name\n2,1,4,3,a\n", "left < right"),
        ("left,right,top,bottom,name\n1,2,3,4,a\n", "bottom < top"),
        ("left,right,top,bottom,name\n1,200,4,3,a\n", "right <= 180"),
        ("left,right,top,bottom,name\n1,2,4,3,a\n1,2,4,3,A\n", "csv:3: expected each name once"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_bounding_boxes(write(tmp_path, text))


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a CSV file"):
        read_bounding_boxes(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected a CSV file"):
        read_bounding_boxes(tmp_path / "a.csv")
