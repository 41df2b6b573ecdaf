"""What the database refuses about clients is said in the platform's words."""

import pytest
import sqlalchemy as sa

from jobplatform import client_store, errors, jobs


def test_a_second_client_of_the_same_name_is_refused(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        client_store.create(conn, client_id=jobs.new_id(), name="acme")

    with engine.connect() as conn, pytest.raises(errors.ClientExists):
        client_store.create(conn, client_id=jobs.new_id(), name="acme")
