"""The contract's checks, for our mechanisms and for anybody's.

`check_mixer(cls)` runs every check that the traits of a mixer call for; `contract_checks(cls)` yields them one by one::

    @pytest.mark.parametrize("check", contract_checks(MyMixer), ids=str)
    def test_contract(check):
        check()

`cls` is a `SequenceMixer` or a `FeatureMixer` with class-level `traits` and `example`, registered or not.
"""

from __future__ import annotations

from regard.testing.check import Check, Report
from regard.testing.plan import check_mixer, contract_checks, skipped_checks

__all__ = ["Check", "Report", "check_mixer", "contract_checks", "skipped_checks"]
