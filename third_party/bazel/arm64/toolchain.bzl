"""Debian's cross compiler for ARM64 (package g++-aarch64-linux-gnu), for --config=arm64."""

load("@bazel_tools//tools/cpp:cc_toolchain_config_lib.bzl", "feature", "flag_group", "flag_set", "tool_path")
load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "ACTION_NAMES")

_PREFIX = "/usr/bin/aarch64-linux-gnu-"

_COMPILE = [ACTION_NAMES.c_compile, ACTION_NAMES.cpp_compile]

_LINK = [
    ACTION_NAMES.cpp_link_executable,
    ACTION_NAMES.cpp_link_dynamic_library,
    ACTION_NAMES.cpp_link_nodeps_dynamic_library,
]

def _always(name, actions, flags):
    return feature(
        name = name,
        enabled = True,
        flag_sets = [flag_set(actions = actions, flag_groups = [flag_group(flags = flags)])],
    )

def _arm64_toolchain_config_impl(ctx):
    return cc_common.create_cc_toolchain_config_info(
        ctx = ctx,
        toolchain_identifier = "debian-aarch64-linux-gnu",
        host_system_name = "local",
        target_system_name = "aarch64-linux-gnu",
        target_cpu = "aarch64",
        target_libc = "glibc",
        compiler = "gcc",
        abi_version = "gnu",
        abi_libc_version = "glibc",
        # Prefixes: the version of gcc follows in the first.
        cxx_builtin_include_directories = [
            "/usr/lib/gcc-cross/aarch64-linux-gnu",
            "/usr/aarch64-linux-gnu/include",
        ],
        tool_paths = [
            tool_path(name = name, path = _PREFIX + name)
            for name in ["ar", "cpp", "gcc", "gcov", "ld", "nm", "objcopy", "objdump", "strip"]
        ],
        features = [
            feature(name = "supports_pic", enabled = True),
            # Dependency files name the headers as they were found, not through resolved links.
            _always("found_headers", _COMPILE, ["-no-canonical-prefixes", "-fno-canonical-system-headers"]),
            # gcc 12 sees an offset in a deleted pointer of std::vector<float> where there is none.
            _always("quiet", _COMPILE, ["-Wno-free-nonheap-object"]),
            _always("standard_library", _LINK, ["-lstdc++", "-lm"]),
        ],
    )

arm64_toolchain_config = rule(
    implementation = _arm64_toolchain_config_impl,
    provides = [CcToolchainConfigInfo],
)
