"""Networks trained side by side are those trained alone."""

import torch
from torch import nn
from torch.nn.functional import mse_loss

import fallline as fl
from fallline.claims._networks import trained_networks, training_losses, validation
from fallline.core.keys import Key
from fallline.optim import SGD, Adam

STEPS, KEY = 7, 3


def problem(seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    draw = lambda rows, columns: torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return fl.Training(model, mse_loss, (draw(20, 3), draw(20, 2)), validation=(draw(5, 3), draw(5, 2)), batch_size=4)


def alone(seed, optimizer, index, **hyper):
    """An ordinary run on the same network, with its rows in the order that the seed at ``index`` has."""
    p = problem(seed)
    order = torch.randperm(20, generator=Key(KEY).fold("order", index).generator())
    ordered = fl.Training(p.model, mse_loss, [t[order] for t in p.data], batch_size=4)
    return fl.solve(ordered, fl.Train(optimizer, **hyper), fl.Budget(steps=STEPS), key=KEY).x


def close(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-9) for name in a)


def test_every_network_is_the_one_trained_alone():
    settings = [{"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9)}]
    problems = [problem(0), problem(1)]
    weights = trained_networks(problems, Adam, settings, STEPS, KEY)
    for i, setting in enumerate(settings):
        for s in range(2):
            assert close(weights[i][s], alone(s, Adam, s, **setting))
            assert training_losses(problems, weights)[i, s] == problems[s].value(weights[i][s])
            assert validation(problems, weights)[i, s] == problems[s].observe(weights[i][s])["loss"]


def test_a_network_that_diverges_leaves_the_others_alone():
    problems = [problem(0), problem(1)]
    weights = trained_networks(problems, SGD, [{"lr": 0.01}, {"lr": 1e200}], STEPS, KEY)
    assert close(weights[0][0], alone(0, SGD, 0, lr=0.01))
    losses = training_losses(problems, weights)
    assert losses[0].isfinite().all() and losses[1].isinf().all()


def test_watching_sees_the_weights_on_their_way_and_ends_the_run():
    seen = []

    def watch(step, weights):
        seen.append((step, weights[0][0]["0.bias"].clone()))
        return step >= 4

    weights = trained_networks([problem(0)], SGD, [{"lr": 0.1}], STEPS, KEY, every=2, watch=watch)
    assert [step for step, _ in seen] == [2, 4]
    assert torch.equal(weights[0][0]["0.bias"], seen[-1][1])
    assert not torch.equal(seen[0][1], seen[1][1])
