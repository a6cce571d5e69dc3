"""uniseg as an installable package. The text embeddings stand at the top level and are copied into the wheel."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithEmbeddings(build_py):
    """Puts the top level's embeddings.npy beside the modules of the built package."""

    def run(self):
        super().run()
        if not self.editable_mode:  # an editable install reads it from the checkout
            self.copy_file(str(HERE / "embeddings.npy"), str(Path(self.build_lib) / "uniseg" / "embeddings.npy"))


setup(
    name="uniseg",
    version=re.search(r'__version__ = "(.+)"', (HERE / "uniseg" / "machine" / "about.py").read_text()).group(1),
    description="The CLIP-Driven Universal Model for abdominal organ segmentation and tumour detection in CT",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["uniseg", "uniseg.*"]),
    package_data={"uniseg": ["py.typed", "weights/*.pt", "weights/*.json"]},
    cmdclass={"build_py": BuildWithEmbeddings},
    install_requires=["torch>=2.6,<=2.13.0", "numpy>=1.26", "nibabel>=5.2", "scipy>=1.11", "tqdm>=4.60"],
    extras_require={"test": ["pytest>=8"]},
    entry_points={"console_scripts": ["uniseg-infer=uniseg.infer:main", "uniseg-train=uniseg.train:command",
                                      "uniseg-evaluate=uniseg.evaluate:main"]},
    classifiers=["Programming Language :: Python :: 3", "Intended Audience :: Science/Research",
                 "Topic :: Scientific/Engineering :: Image Processing"],
)
