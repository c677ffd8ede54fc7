"""Tables of result rows."""

from multistep_cm.reporting.tables import format_rows


def test_columns_that_no_row_fills_are_left_out() -> None:
    rows = [
        {"method": "cd", "steps": 4, "fid": 2.71828, "recall": None},
        {"method": "ct", "steps": 8, "frechet_distance": 0.5},
    ]
    assert format_rows(rows, 0.25).splitlines() == [
        "| method | steps | Fréchet distance | FID   |",
        "|--------|-------|------------------|-------|",
        "| cd     | 4     |                  | 2.718 |",
        "| ct     | 8     | 0.5000           |       |",
        "",
        "floor (real images against real images): 0.2500",
    ]
    assert "floor" not in format_rows(rows, None)
