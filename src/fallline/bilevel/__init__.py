"""You have a problem inside a problem: hyperparameters, data weights, anything chosen by what it makes another problem answer."""

from fallline.bilevel.f2sa import F2SA, F3SA

__all__ = ["F2SA", "F3SA"]
