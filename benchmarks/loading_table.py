"""The tables and the aims of loading.py, from what was measured."""

from __future__ import annotations

LENGTHS = ("long", "short")
AIMS = {"long": 1.01, "short": 1.10}  # steps with our NF4 against bf16
AIM_REREAD, AIM_RAM_BYTES = 0.80, 1.5e9


def tables(result: dict) -> str:
    sizes, speed, disk = result["sizes"], result["speed"], result["disk"]
    columns = ["weights"]
    for length in LENGTHS:
        columns += [f"step, {sizes['tokens'][length]} tokens", "than bf16", "floor"]
    for column in ("peak VRAM, long", "peak VRAM, short", "load", "peak RAM"):
        columns += [column, "floor"]
    lines = [f"{result['device']}, torch {result['torch']}, {result['date']}; random Wan of TI2V-5B's layout, "
             f"{sizes['layers']} blocks of {sizes['dim']} / {sizes['ffn']}, {result['file_bytes'] / 1e9:.2f} GB in "
             f"bf16, computed in {speed['dtype'].removeprefix('torch.')}", "",
             "| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    lines += [f"| {kind} | " + " | ".join(cells(result, kind)) + " |" for kind in speed["steps"]]
    lines += ["", f"unpacking one weight {speed['unpack'][0]['shape']}:", "", "| weights | by | time | floor |",
              "| --- " * 4 + "|"]
    lines += [f"| {row['kind']} | {row['by']} | {row['seconds'] * 1e6:.0f} us | "
              f"{row['bytes'] / speed['machine']['bandwidth'] * 1e6:.0f} us |" for row in speed["unpack"]]
    plain, reread = disk["plain"], disk["reread"]
    size = f"{disk['file_bytes'] / 1e9:.2f} GB"
    lines += ["", *(f"quantising a {size} file to {row['kind']}: {row['seconds']:.1f} s, peak "
                    f"RAM {row['peak_ram'] / 1e9:.2f} GB, the result {row['result_bytes'] / 1e9:.2f} GB"
                    for row in disk["quantise"]),
              f"the saved file, {reread['bytes'] / 1e9:.2f} GB: loaded in {reread['seconds']:.2f} s, peak RAM "
              f"{reread['peak_ram'] / 1e9:.2f} GB; the same disk's plain read {plain['seconds']:.2f} s",
              f"measured: {speed['machine']['flops'] / 1e12:.3g} TFLOP/s in a matrix product, "
              f"{speed['machine']['bandwidth'] / 1e9:.3g} GB/s copied in memory", *result["notes"], "", *result["aims"]]
    return "\n".join(lines)


def cells(result: dict, kind: str) -> list[str]:
    """One row of the main table behind its title."""
    speed = result["speed"]
    loads = {row["kind"]: row for row in result["loads"]}
    bf16, mine = loads["bf16"], loads.get(kind)
    row = []
    for length in LENGTHS:
        seconds, base = speed["steps"][kind][length], speed["steps"]["bf16"][length]
        row += [f"{seconds:.4f} s", f"{seconds / base:.3f}x", f"{step_floor(result, kind, length):.4f} s"]
    if mine is None:
        return [*row, *["-"] * 8]
    for length in LENGTHS:
        beside = bf16[f"vram_{length}"] - bf16["model_bytes"]
        peak = mine[f"vram_{length}"]
        row += [f"{peak / 1e9:.2f} GB", f"{(mine['model_bytes'] + beside) / 1e9:.2f} GB"] if peak else ["-", "-"]
    plain = result["disk"]["plain"]
    return [*row, f"{mine['seconds']:.1f} s", f"{result['file_bytes'] * plain['seconds'] / plain['bytes']:.1f} s",
            f"{mine['peak_ram'] / 1e9:.2f} GB", f"{mine['model_bytes'] / 1e9:.2f} GB"]


def step_floor(result: dict, kind: str, length: str) -> float:
    """Seconds: the operations of a bf16 step, or a measured bf16 step and the bytes of unpacking every weight once."""
    speed, machine = result["speed"], result["speed"]["machine"]
    if kind == "bf16":
        return operations(result["sizes"], length) / machine["flops"]
    moved = speed["packed_bytes"][kind] + speed["weight_bytes"]
    return speed["steps"]["bf16"][length] + moved / machine["bandwidth"]


def operations(sizes: dict, length: str) -> float:
    """Floating-point operations of the blocks in one step: matrix products, self- and cross-attention; 512 of text."""
    n, dim, text = sizes["tokens"][length], sizes["dim"], 512
    products = 2 * n * (6 * dim * dim + 2 * dim * sizes["ffn"]) + 2 * text * 2 * dim * dim
    return sizes["layers"] * (products + 4 * n * (n + text) * dim)


def aims(result: dict) -> list[str]:
    """One line per aim: what it is, what was measured, whether it is met."""
    steps, disk = result["speed"]["steps"], result["disk"]
    loads = {row["kind"]: row for row in result["loads"]}
    is_cuda = bool(loads["bf16"]["vram_long"])
    lines = []
    for length, limit in AIMS.items():
        share = steps["nf4"][length] / steps["bf16"][length]
        lines.append(_line(f"NF4 at {result['sizes']['tokens'][length]} tokens <= {limit:.2f}x bf16", f"{share:.3f}x",
                           share <= limit if is_cuda else None))
        if is_cuda and "bitsandbytes" in loads:
            ours, theirs = (loads[kind][f"vram_{length}"] for kind in ("nf4", "bitsandbytes"))
            lines.append(_line("VRAM of NF4 no more than bitsandbytes'", f"{ours / 1e9:.3f} GB, {theirs / 1e9:.3f} GB",
                               ours <= theirs))
    share = disk["plain"]["seconds"] / disk["reread"]["seconds"]
    over = max(row["peak_ram"] - row["result_bytes"] for row in disk["quantise"])
    return [*lines, _line(f"re-reading >= {AIM_REREAD:.0%} of the plain read", f"{share:.0%}", share >= AIM_REREAD),
            _line(f"RAM while quantising <= {AIM_RAM_BYTES / 1e9:.1f} GB over the result (for a 10 GB file)",
                  f"{over / 1e9:.2f} GB over, for {disk['file_bytes'] / 1e9:.1f} GB", over <= AIM_RAM_BYTES)]


def _line(aim: str, measured: str, is_met: bool | None) -> str:
    verdict = "the aim is for a GPU" if is_met is None else "met" if is_met else "NOT met"
    return f"aim: {aim}: {measured}, {verdict}"
