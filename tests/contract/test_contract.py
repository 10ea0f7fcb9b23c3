"""Every registered method keeps its kind's contract."""

import pytest

from seawall.registry import HOMES, Entry
from seawall.testing.contract import Check, case_id, checks, contract_cases

CASES = [case for kind in HOMES for case in contract_cases(kind)]


@pytest.mark.parametrize(("entry", "check"), CASES, ids=case_id)
def test_contract(entry: Entry, check: Check) -> None:
    check(entry)


@pytest.mark.parametrize("kind", HOMES)
def test_every_kind_has_methods_and_a_contract(kind: str) -> None:
    assert len(checks(kind)) >= 4
    assert contract_cases(kind)
