import numpy as np

from jobs.sample_models.pools import KINDS, NO_OBJECT, kinds_of, map_scenes, render, render_pool, training_scene


def test_a_rendered_scene_says_which_object_each_pixel_shows() -> None:
    image, owners, kinds = render(3)
    scene = training_scene(3)
    assert (image == scene.image).all()
    assert (kinds == kinds_of(scene)).all()
    for j, thing in enumerate(scene.objects):
        assert ((owners == j + 1) == thing.mask).all()
    assert (owners[~np.any([thing.mask for thing in scene.objects], axis=0)] == 0).all()


def test_kinds_are_those_of_the_objects() -> None:
    scene = training_scene(3)
    kinds = kinds_of(scene)
    assert kinds.shape == (5, 3)
    words = [[names[i] for names, i in zip(KINDS, row, strict=True)] for row in kinds[: len(scene.objects)]]
    assert words == [[thing.noun, thing.color, thing.texture] for thing in scene.objects]
    assert (kinds[len(scene.objects) :] == NO_OBJECT).all()


def test_a_pool_holds_the_scenes_in_order() -> None:
    pool = render_pool(2)
    for index in range(2):
        for array, expected in zip((pool.images, pool.owners, pool.kinds), render(index), strict=True):
            assert (array[index] == expected).all()


def test_results_of_a_pool_of_workers_are_in_order() -> None:
    assert map_scenes(abs, 130) == list(range(130))
