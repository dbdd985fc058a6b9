"""The local page of `cnnjax explore`: views (what it shows), server (who may ask for it), static files."""
