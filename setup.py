"""The one step of the build that pyproject.toml cannot express: the top level's text embeddings go into the wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithEmbeddings(build_py):
    """Puts the top level's embeddings.npy beside the modules of the built package."""

    def run(self):
        super().run()
        if not self.editable_mode:  # an editable install reads it from the checkout
            self.copy_file(str(HERE / "embeddings.npy"), str(Path(self.build_lib) / "uniseg" / "embeddings.npy"))


setup(cmdclass={"build_py": BuildWithEmbeddings})
