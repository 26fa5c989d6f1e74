"""Reports of runs: tables for the terminal, plots, and one self-contained HTML page. Reads records only."""

from tiermem.report.curves import loaded_latency_svg
from tiermem.report.files import csv_text, save_plot
from tiermem.report.html import Section, render_html, render_study
from tiermem.report.plots import figures
from tiermem.report.table import Table
from tiermem.report.tables import all_tables, summary_tables
from tiermem.report.timeline import TimedStep, chrome_trace, chrome_trace_text

__all__ = [
    "Section",
    "Table",
    "TimedStep",
    "all_tables",
    "chrome_trace",
    "chrome_trace_text",
    "csv_text",
    "figures",
    "loaded_latency_svg",
    "render_html",
    "render_study",
    "save_plot",
    "summary_tables",
]
