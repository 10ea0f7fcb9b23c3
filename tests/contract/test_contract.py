"""Every registered method keeps its kind's contract."""

import pytest

from seawall.registry import Entry
from seawall.testing.suite import Check, case_id, contract_cases

CASES = [case for kind in ("attack", "corruption", "loss", "noise") for case in contract_cases(kind)]


@pytest.mark.parametrize(("entry", "check"), CASES, ids=case_id)
def test_contract(entry: Entry, check: Check) -> None:
    check(entry)
