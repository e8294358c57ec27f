"""The mutation check itself is too slow to run here (`python -m tests.mutate`); that it is up to date is not."""

from __future__ import annotations

import pytest

from .mutate import MUTATIONS, ROOT, TESTS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_every_mutation_still_applies(mutation: Mutation) -> None:
    text = (ROOT / "estimators" / mutation.file).read_text()
    assert text.count(mutation.before) == 1
    compile(text.replace(mutation.before, mutation.after), mutation.file, "exec")


def test_the_record_is_of_these_mutations() -> None:
    record = (ROOT / "docs" / "mutations.md").read_text()
    for mutation in MUTATIONS:
        assert f"| `{mutation.name}` |" in record
    assert "survived" not in record


def test_the_tests_it_runs_exist() -> None:
    for name in TESTS:
        assert (ROOT / "tests" / f"{name}.py").is_file()
