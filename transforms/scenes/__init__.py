"""Sample scenes: a small world in which the truth of every step is known exactly."""

from transforms.scenes.scene import Scene, SceneObject, make_scene

__all__ = ["Scene", "SceneObject", "make_scene"]
