"""A deployment that is rolled back brings old code back over a newer schema."""

import sqlalchemy as sa

from jobplatform import migrations


def test_old_code_leaves_a_newer_schema_alone(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        known = conn.exec_driver_sql("SELECT version_num FROM jobplatform.alembic_version").scalar()
        conn.exec_driver_sql("UPDATE jobplatform.alembic_version SET version_num = '9999'")
    try:
        assert migrations.upgrade(engine) is False
    finally:
        with engine.begin() as conn:
            conn.execute(
                sa.text("UPDATE jobplatform.alembic_version SET version_num = :known"),
                {"known": known},
            )
    assert migrations.upgrade(engine) is True
