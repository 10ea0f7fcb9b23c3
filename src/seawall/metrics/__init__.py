"""Metrics: counts per chip first, ratios of counts last.

`counts` confusion matrices and object sizes of chips, `calibration` and `srip` other measurements of chips; `ratios` of counts,
`bootstrap` intervals over groups, `aggregate` records of a set of chips, `worst_case` over attacks, `consistency` flags of attacks
that others beat, `robustness_card` the table of all attacks. The modules that reports need use NumPy alone.
"""
