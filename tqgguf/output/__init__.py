"""Writing: where every byte goes, files that are whole or not there, journals, tiles."""
