"""The local page of `cnnjax explore`: server (access), views and operations (answers), static files."""
