"""The contract suite, public: every registered method runs through it, plug-ins too.

In a plug-in's tests:

    @pytest.mark.parametrize(("entry", "check"), contract_cases("attack"), ids=case_id)
    def test_contract(entry, check):
        check(entry)
"""

from seawall.testing.contract import Check, case_id, checks, contract_cases
from seawall.testing.fixtures import PixelLinear, ground_batch, linear_model, uneven_model, worst_accuracy

__all__ = [
    "Check",
    "PixelLinear",
    "case_id",
    "checks",
    "contract_cases",
    "ground_batch",
    "linear_model",
    "uneven_model",
    "worst_accuracy",
]
