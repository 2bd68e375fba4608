"""Do drawn pictures obey their maps? ControlNet, T2I-Adapter and Composer, trained in small on sample scenes.

    python -m benchmarks.control --runs FOLDER [--train NAME] [--steps 800] [--count 64] [--sheet FOLDER] [--write]

Each model starts from the sample text-to-image model and learns from scenes of 64 pixels with their true maps; `--train`
trains one of them and stops. From captions and maps of scenes that it was not trained on, each draws pictures; the map
is taken again from what was drawn, and compared with the one that was given. Beside it stand the same comparison for
the text-to-image model, which sees the caption alone and draws from the same noise, and for the scenes' own pictures
through the autoencoder: no model of these latents can be expected to do better.
"""
