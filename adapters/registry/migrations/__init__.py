"""The history of the registry's tables, as Alembic migrations."""
