"""The page about a run: what it counts, its charts and pictures, and the values of its template."""
