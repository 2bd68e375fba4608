"""One Beam `ModelHandler` per kind of model, and the presets that name checkpoints."""
