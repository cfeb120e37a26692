#!/usr/bin/env python3
"""Metadata that run.sh needs Python for: `name=value` lines from the CUDA driver, cublasLt and NCCL on the library path.

    python3 metadata.py            # the GPU and the libraries' versions
    python3 metadata.py packages   # the folders of NVIDIA's Python packages, one a line

A library that is missing or fails leaves its lines out. Nothing is imported but the standard library.
"""
import ctypes
import importlib.metadata
import importlib.util
import platform
import sys

COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76


def report(name, value):
    print(f"{name}={value}", flush=True)


def load(*names):
    """Returns the first library that loads, in the order in which kudos tries them."""
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    return None


def dotted(version):
    """130002 -> 13.0.2"""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def driver():
    cuda = load("libcuda.so", "libcuda.so.1")
    if cuda is None:
        return
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
        report("cuda driver interface", f"{number.value // 1000}.{number.value % 1000 // 10}")
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(number)) != 0:
        return
    report("devices", number.value)
    device, name, total = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    if number.value == 0 or cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return
    if cuda.cuDeviceGetName(name, len(name), device) == 0:
        report("device", name.value.decode(errors="replace"))
    capability = []
    for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) == 0:
            capability.append(str(number.value))
    if len(capability) == 2:
        report("compute capability", ".".join(capability))
    if cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device) == 0:
        report("memory", f"{total.value / 2**30:.2f} GiB")


def cublaslt():
    library = load("libcublasLt.so", "libcublasLt.so.13")
    if library is not None:
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        report("cublasLt version", dotted(library.cublasLtGetVersion()))


def nccl():
    library, version = load("libnccl.so", "libnccl.so.2"), ctypes.c_int()
    if library is not None and library.ncclGetVersion(ctypes.byref(version)) == 0:
        report("NCCL version", dotted(version.value))


def packages():
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        print(folder)


def main():
    if sys.argv[1:] == ["packages"]:
        return packages()
    report("python", f"{platform.python_version()} ({sys.executable})")
    for name in ("torch", "transformers"):
        try:
            report(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            report(name, "none")
    for query in (driver, cublaslt, nccl):
        try:
            query()
        except (AttributeError, OSError) as error:  # a library without the function
            print(f"metadata.py: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
