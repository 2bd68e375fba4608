"""Sample scenes: rendered pictures with captions, for which the right output of every step is known exactly."""

from transforms.scenes.scene import Scene, SceneObject, make_scene

__all__ = ["Scene", "SceneObject", "make_scene"]
