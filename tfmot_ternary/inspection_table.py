"""Inspection table: what `tfmot-ternary inspect` prints."""

from __future__ import annotations

from tfmot_ternary.inspection import Inspection


def format_table(found: Inspection) -> str:
    """Returns an inspection as aligned text: a line for each weight, then totals and checks."""
    header = [
        "op",
        "tensor",
        "shape",
        "format",
        "group",
        "bits",
        "+scales",
        "bytes",
        "offset",
        "64",
    ]
    rows = [
        [
            w.op,
            w.tensor if len(w.tensor) <= 48 else "..." + w.tensor[-45:],
            "x".join(str(d) for d in w.shape),
            w.format,
            "-" if w.group_size is None else str(w.group_size),
            f"{w.bits_per_weight:.3f}",
            f"{w.bits_per_weight_with_scales:.3f}",
            f"{w.bytes + w.scale_bytes:,}",
            str(w.offset),
            "yes" if w.aligned else "no",
        ]
        for w in found.weights
    ]
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    # Names and shapes to the left, numbers to the right.
    lines = [
        "  ".join(
            cell.ljust(width) if i < 5 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    lines.append("")
    listed = 0
    for name, total in sorted(found.totals().items()):
        listed += total["bytes"]
        lines.append(
            f"{name:>8}: {total['count']} tensors, {total['elements']:,} weights, "
            f"{total['bytes']:,} bytes ({100 * total['share_of_file']:.1f} % of the file), "
            f"{total['bits_per_weight_with_scales']:.3f} bits per weight with scales"
        )
    rest = found.file_bytes - listed - found.small_bytes
    lines.append(
        f"   small: {found.small_count} constants below {found.min_elements} elements, "
        f"{found.small_bytes:,} bytes"
    )
    lines.append(f"   graph: {rest:,} bytes (operators, tensor names, metadata, alignment)")
    lines.append(f"    file: {found.file_bytes:,} bytes, signatures {found.signatures}")
    copies, misaligned = found.float_copies(), found.misaligned()
    lines.append(
        "float copies of packed weights: "
        + (", ".join(w.tensor for w in copies) if copies else "none")
    )
    lines.append(
        "packed weights off a 64-byte boundary: "
        + (", ".join(w.tensor for w in misaligned) if misaligned else "none")
    )
    return "\n".join(lines)
