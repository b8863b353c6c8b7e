"""Programs that measure; one for each table of figures."""
