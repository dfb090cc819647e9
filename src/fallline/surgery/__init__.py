"""You have a trained model to change."""

from fallline.surgery.obs import obs_prune

__all__ = ["obs_prune"]
