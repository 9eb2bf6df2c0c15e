"""Without their packages: an import that says what to install, and a package that never asks for them itself."""

import importlib
import subprocess
import sys

import pytest

from jumpstart.errors import MissingPackageError


@pytest.mark.parametrize(("name", "package"), [("huggingface", "transformers"), ("lightning", "lightning.pytorch")])
def test_a_missing_package_is_named_with_its_remedy(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"jumpstart.integrations.{name}", raising=False)
    with pytest.raises(MissingPackageError, match=f"pip install {package.split('.')[0]}"):
        importlib.import_module(f"jumpstart.integrations.{name}")


def test_the_wrapper_imports_none_of_them():
    code = (
        "import sys, jumpstart as js; js.JumpOptimizer; import jumpstart.training.writers, jumpstart.integrations;"
        "assert not {'transformers', 'lightning', 'accelerate', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
