"""You have a differential equation, or data from one: trainable finite differences."""

from fallline.physics.fd_net import FDNet

__all__ = ["FDNet"]
