"""Puts the recipes, which stand beside the package in the repository, into it when a wheel is built."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Builds the package with `deft_hf/recipes/` in it."""

    def run(self) -> None:
        """Build, then copy the recipes."""
        super().run()
        if not self.editable_mode:  # an editable install finds those of the repository
            shutil.copytree("recipes", Path(self.build_lib, "deft_hf", "recipes"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
