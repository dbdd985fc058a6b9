"""Builds the CPU kernels where possible and ships configs/; all else is in pyproject.toml."""

import importlib.metadata
import importlib.util
import itertools
import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = Path("cnnjax/ops/cpu/native")


def onednn(package: str, name: str) -> Path:
    """The file whose path ends so that a wheel of oneDNN has installed."""
    for file in importlib.metadata.files(package) or []:
        if str(file).endswith(name):
            return Path(file.locate()).resolve()
    raise FileNotFoundError(f"{package} holds no {name}")


def extensions() -> list[Extension]:
    """What can be built here."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print("cnnjax: the CPU kernels are for Linux on x86-64; XLA does their work here")
        return []
    resize = Extension(
        "cnnjax.data._resize", ["cnnjax/data/resize.c"], extra_compile_args=["-O3"], optional=True
    )
    return [resize, *kernels()]


def kernels() -> list[Extension]:
    """The extension, or nothing where it cannot be built: XLA does its work then."""
    try:
        jaxlib = importlib.util.find_spec("jaxlib")
        headers = [
            Path(jaxlib.submodule_search_locations[0], "include"),
            onednn("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp").parents[2],
        ]
        library = onednn("onednn-cpu-gomp", "libdnnl.so.3")
    except (AttributeError, OSError, importlib.metadata.PackageNotFoundError) as error:
        print(f"cnnjax: no CPU kernels, XLA does their work: {error!r}")
        return []
    return [
        Extension(
            "cnnjax.ops.cpu._kernels",
            sources=sorted(str(source) for source in SOURCES.glob("*.cc")),
            depends=sorted(str(header) for header in SOURCES.glob("*.h")),
            include_dirs=[str(header) for header in headers],
            extra_compile_args=[
                "-O3",
                "-std=c++17",
                "-fopenmp",
                "-fno-math-errno",
                "-fvisibility=hidden",
                "-w",
                "-g0",
            ],
            extra_link_args=["-fopenmp", str(library)],
            optional=True,
        )
    ]


class WithConfigs(build_py):
    """The modules, and configs/ as `cnnjax/configs`; an editable install reads that of the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "cnnjax", "configs")
            folder.mkdir(parents=True, exist_ok=True)
            for file in Path("configs").glob("*.py"):
                shutil.copy(file, folder)


class SideBySide(build_ext):
    """Compiles the files of an extension on all cores; setuptools takes one after the other."""

    def build_extensions(self) -> None:
        one_by_one = self.compiler.compile

        def compile_all(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: one_by_one([source], **options), sources)
                return [*itertools.chain.from_iterable(objects)]

        self.compiler.compile = compile_all
        super().build_extensions()


setup(ext_modules=extensions(), cmdclass={"build_ext": SideBySide, "build_py": WithConfigs})
