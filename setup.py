# SPDX-License-Identifier: Apache-2.0
"""One package for colcon (ament_python), which reads package.xml beside this, and for pip."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "m3l_ros"
SHARE = f"share/{NAME}"


def shared(folder: str) -> list[tuple[str, list[str]]]:
    """Give data_files entries that install every file below ``folder`` to the same place in share."""
    files = sorted(
        path for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return [(f"{SHARE}/{path.parent.as_posix()}", [path.as_posix()]) for path in files]


ROS = [  # the release Jazzy; on a robot apt's own take the place of these
    "ros-rclpy[fastrtps]==7.1.6",
    "ros-diagnostic-msgs==5.3.6",
    "ros-lifecycle-msgs==2.0.3",
    "ros-rcl-interfaces==2.0.3",
    "ros-rosgraph-msgs==2.0.3",
    "ros-sensor-msgs==5.3.6",
    "ros-std-msgs==5.3.6",
]
IMAGES = [
    "opencv-python-headless>=4.8",
    "rosbags>=0.11",
    "rosbags-image>=0.10",
    "apsw",  # this and the following are what rosbags itself requires
    "backports-zstd; python_version < '3.14'",
    "lz4",
]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"]
TEST = ["cyclonedds>=11", "hypothesis", "mcap>=1.1", "pycocotools", "pytest>=7.4", "torchmetrics>=1.4"]

setup(
    name=NAME,
    version="0.1.0",
    description="RGB-D semantic segmentation for robots that goes on when depth or colour drops out",
    maintainer="m3l_ros maintainers",
    maintainer_email="m3l_ros@example.org",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["m3l_model", "m3l_model.*", "m3l_ros", "m3l_ros.*"]),
    package_data={
        "m3l_model": ["py.typed", "templates/*", "weights/*"],
        "m3l_ros": ["py.typed", "templates/*"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (SHARE, ["package.xml"]),
        *shared("config"),
        *shared("launch"),
    ],
    zip_safe=False,
    install_requires=["numpy>=1.26", "PyYAML", "safetensors", "torch>=2.4"],
    extras_require={
        "ros": ROS + IMAGES,
        "train": [
            *IMAGES,
            "Jinja2",
            "lightning-fabric>=2.4",
            "matplotlib>=3.6",
            "Pillow>=9.0",
            "tensorboard>=2.14",
            "tqdm",
        ],
        "hub": ["huggingface-hub>=0.24"],
        "bench": ["transformers>=5"],
        "onnx": ONNX,
        "test": TEST,
        "dev": [
            *TEST,
            *ONNX,
            "colcon-core",
            "colcon-ros",
            "mypy",
            "pytest-xdist>=3.5",
            "ruff",
            "setuptools>=70.1,<80",  # colcon --symlink-install calls setup.py develop, which 80 took away
            "types-PyYAML",
        ],
    },
    entry_points={
        "console_scripts": [
            "m3l = m3l_model.cli:main",
            "segmentation_node = m3l_ros.segmentation_node:main",
        ],
        "m3l.commands": [
            "bench = m3l_model.commands.bench",
            "demo = m3l_ros.commands.demo",
            "eval = m3l_model.commands.eval",
            "export = m3l_model.commands.export",
            "frames = m3l_model.commands.frames",
            "import-images = m3l_model.commands.import_images",
            "info = m3l_model.commands.info",
            "node = m3l_ros.commands.node",
            "replay = m3l_ros.commands.replay",
            "segment = m3l_model.commands.segment",
            "split = m3l_model.commands.split",
            "train = m3l_model.commands.train",
        ],
        "m3l.live": ["check = m3l_ros.commands.live:load_check"],
    },
)
