"""Annex: run folders to tables, plots and one HTML file. Imports run_folder and records only; no torch."""
