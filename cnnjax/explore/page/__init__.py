"""The local page of `cnnjax explore`: server (access), views (answers), static files."""
