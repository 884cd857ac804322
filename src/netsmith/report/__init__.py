"""From result files to tables, pictures and one HTML file. Reads results, never live objects."""
