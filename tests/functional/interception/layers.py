"""The layers of torch.nn, one or more cases each: what test_layers.py certifies and docs/layers.md lists."""

from tests.functional.interception import cases_losses, cases_parameters, cases_pointwise, cases_spatial

CASES = [*cases_pointwise.CASES, *cases_spatial.CASES, *cases_parameters.CASES, *cases_losses.CASES]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases of one name"

WITHOUT_A_CASE = {
    "Module": "the base of all",
    "Container": "another name of `Module`",
    "RNNBase": "the base of RNN, LSTM and GRU",
    "RNNCellBase": "the base of the cells",
    "NLLLoss2d": "another name of `NLLLoss`",
    "DataParallel": "functionalize the module in it; tasks are given to devices by `execution`",
}
"""Classes of torch.nn that are no layers to call."""
