"""The generated tables of the operator's guide."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from server.cli.reference import fill, main, metrics_table, settings_table
from server.metrics import Metrics
from server.settings import Settings
from tests.server.api.fakes import STATS

MARKS = (
    "a\n<!-- settings:begin -->\nold\n<!-- settings:end -->\nb\n<!-- metrics:begin --><!-- metrics:end -->\n"
)


def test_one_row_for_each_setting() -> None:
    rows = settings_table().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    assert all(row.count(" | ") == 3 for row in rows)
    assert "| `--port` | `MULTILORA_PORT` | `8000` | port to listen on; 0 takes a free one |" in rows


def test_one_row_for_each_metric_that_a_server_shows() -> None:
    metrics = Metrics(lambda: STATS, "tiny", 64)
    metrics.count("a@1", "success")
    metrics.uploads.labels("created").inc()
    metrics.refused_keys.labels("missing").inc()
    shown = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(metrics.render().decode())
        if not family.name.endswith("_created")
    }
    rows = {row.split("`")[1] for row in metrics_table().splitlines()[2:]}
    assert rows == shown


def test_tables_are_replaced_and_all_else_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(MARKS)
    main([str(page)])
    text = page.read_text()
    assert text.startswith("a\n<!-- settings:begin -->\n| Flag")
    assert "\nold\n" not in text
    assert "\nb\n" in text
    assert fill(text) == text
