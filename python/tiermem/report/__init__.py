"""Reports of runs: tables for the terminal, plots, and one self-contained HTML page. Reads records only."""

from tiermem.report.curves import loaded_latency_svg
from tiermem.report.files import csv_text, save_plot
from tiermem.report.html import render_html
from tiermem.report.plots import figures
from tiermem.report.tables import Table, all_tables

__all__ = ["Table", "all_tables", "csv_text", "figures", "loaded_latency_svg", "render_html", "save_plot"]
