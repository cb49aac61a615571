"""Local stand-ins for the repositories that Bazel 4 fetches for itself, on request.

Debian's Bazel (packages bazel-bootstrap 4.2.3 and bazel-platforms) looks at GitHub for four
repositories of which this project uses nothing. On a machine without a network, --config=offline sets
TFMOT_TERNARY_OFFLINE, and they become folders next to this file. A Bazel with a network gets its own.
"""

_OFFLINE = """
def repositories():
    native.local_repository(name = "platforms", path = "{platforms}")
    for name in ["rules_cc", "rules_java", "remote_coverage_tools"]:
        native.local_repository(name = name, path = "third_party/bazel/" + name)
"""

_ONLINE = """
def repositories():
    pass
"""

# Where the Debian package bazel-platforms puts it.
_PLATFORMS = "/usr/share/bazel/tools/platforms"

def _offline_choice_impl(repository_ctx):
    offline = repository_ctx.os.environ.get("TFMOT_TERNARY_OFFLINE", "") == "1"
    repository_ctx.file("BUILD", "")
    repository_ctx.file(
        "repositories.bzl",
        _OFFLINE.format(platforms = _PLATFORMS) if offline else _ONLINE,
    )

offline_choice = repository_rule(
    implementation = _offline_choice_impl,
    environ = ["TFMOT_TERNARY_OFFLINE"],
    local = True,
)
