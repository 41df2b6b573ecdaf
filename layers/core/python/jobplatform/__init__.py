"""Jobs that are never lost or doubled, exports at the speed of the database."""
