"""The survey's advice."""

import pytest

from fallline.core.registry import names
from fallline.optim import Traits, advise


def first(**traits):
    return [advice.method for advice in advise(traits)]


def test_the_survey_is_followed():
    assert first(sparse=True)[:2] == ["adagrad", "adam"]
    assert first(deep=True)[0] == "adam"
    assert first(ill_conditioned=True, low_noise=True)[0] == "nesterov"
    assert first(ill_conditioned=True) == ["adam"]  # noise undoes what acceleration gains
    assert first(generalization=True)[0] == "sgd"
    assert first(no_tuning=True)[0] == "adadelta"
    assert first() == ["adam"] and advise(Traits()) == advise()


def test_every_method_is_here_and_named_once():
    found = [a.method for a in advise(Traits(*[True] * 6))]
    assert len(set(found)) == len(found) and set(found) <= set(names())
    assert all(advice.reason in str(advice) for advice in advise(Traits(sparse=True)))


def test_an_unknown_trait_is_refused():
    with pytest.raises(ValueError, match="unknown trait 'sparsity'; known: sparse"):
        advise({"sparsity": True})


@pytest.mark.parametrize("traits, message", [({"sparse": "no"}, "sparse must be True or False"), (["sparse"], "traits must be Traits")])
def test_what_is_neither_true_nor_false_is_refused(traits, message):
    with pytest.raises(TypeError, match=message):
        advise(traits)
