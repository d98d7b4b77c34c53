"""Shows what an analysis of a graph found out, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qtool.cli.console import Console

if TYPE_CHECKING:
    from qtool.analysis.lifetimes import MemoryUse
    from qtool.analysis.node_work import Work
    from qtool.analysis.tensor_flow import TensorFlow
    from qtool.backends.onnxruntime_cpu.integer_regions import Partition
    from qtool.graph.tensor_sizes import TensorSize
    from qtool.workflows.diagnose.inspect_graph import Analysis
    from qtool.workflows.diagnose.tensor_range import TensorRange

_INPUT = "an input of the graph"
# Some exporters join the names of all they fused; JSON has the whole.
_LONGEST_NAME = 64


def analysis_json(found: Analysis) -> dict[str, Any]:
    """Returns the analysis as JSON has it; what nobody asked for is left out."""
    parts = {
        "memory": None if found.memory is None else _memory_json(found.memory, found.lowest_peak),
        "flow": None if found.flow is None else _flow_json(found.flow, found.values),
        "macs": None if found.work is None else _work_json(found.work),
        "partition": None if found.partition is None else _partition_json(found.partition),
    }
    lengths = {"lengths": dict(found.lengths), "measured": found.measured}
    return {"sizes": lengths, **{name: part for name, part in parts.items() if part is not None}}


def show_analysis(console: Console, found: Analysis, largest: int) -> None:
    """Prints one table or more for each part that was asked for, with ``largest`` rows where there could be many."""
    if found.memory is not None:
        _show_memory(console, found, found.memory, largest)
        _show_lifetimes(console, found.memory, largest)
    if found.flow is not None:
        _show_flow(console, found.flow, found.values)
    if found.work is not None:
        _show_work(console, found, found.work, largest)
    if found.partition is not None:
        _show_partition(console, found.partition, largest)


def _show_memory(console: Console, found: Analysis, memory: MemoryUse, largest: int) -> None:
    peak = memory.peak_bytes
    node = memory.nodes[memory.peak_at] if memory.nodes else "none"
    saved = peak - memory.reused_peak_bytes
    rows: list[tuple[str, object]] = [
        ("peak of live activations", _bytes(peak)),
        ("at node", f"{_short(node)} ({memory.peak_at + 1} of {len(memory.nodes)})"),
        ("with nodes that write in place", _bytes(memory.reused_peak_bytes)),
        ("which saves", f"{_bytes(saved)}, {saved / peak:.1%}" if peak else "nothing"),
        ("in the best order found", _bytes(peak if found.lowest_peak is None else found.lowest_peak)),
        ("all activations together", _bytes(sum(entry.nbytes for entry in memory.lifetimes))),
        ("lengths", _lengths(found)),
    ]
    if memory.unknown:
        rows.append(("of unknown size", f"{len(memory.unknown)} tensors; give --data, or lengths with --input-shape"))
    console.table("Memory of activations", ("", ""), rows)
    alive = memory.alive_at(memory.peak_at)
    console.table(
        f"Alive at {_short(node)}",
        ("tensor", "bytes", "shape", "made by", "last used by", "could overwrite"),
        [
            (
                _short(entry.tensor),
                f"{entry.nbytes:,}" if entry.size is not None else "unknown",
                _shape(entry.size),
                _short(entry.made_by or _INPUT),
                _short(entry.last_used_by or "the caller"),
                _short(entry.takes_over or ""),
            )
            for entry in alive[:largest]
        ],
        _caption(len(alive), largest),
    )


def _show_lifetimes(console: Console, memory: MemoryUse, largest: int) -> None:
    ranked = sorted(memory.lifetimes, key=lambda entry: (-entry.nbytes, entry.made_at))
    console.table(
        "Largest activations",
        ("tensor", "bytes", "from node", "to node", "nodes"),
        [
            (
                _short(entry.tensor),
                f"{entry.nbytes:,}" if entry.size is not None else "unknown",
                entry.made_at + 1,
                entry.last_used_at + 1,
                entry.last_used_at - entry.made_at + 1,
            )
            for entry in ranked[:largest]
        ],
        _caption(len(ranked), largest),
    )


def _show_flow(console: Console, flow: TensorFlow, values: TensorRange | None) -> None:
    rows: list[tuple[str, object]] = [
        ("role", f"{flow.role}{', an output of the graph' if flow.is_output else ''}"),
        ("type and shape", f"{_dtype(flow.size)} {_shape(flow.size)}"),
        ("bytes", f"{flow.size.nbytes:,}" if flow.size is not None else "unknown"),
    ]
    if values is None:
        rows.append(("range", "--data or --calib-stats shows it"))
    else:
        rows.append(("range", f"{values.minimum:.6g} to {values.maximum:.6g}"))
        rows += [(f"{share:.1%} lie below", f"{value:.4g}") for share, value in values.quantiles.items()]
        rows.append(("seen in", f"{values.samples} samples" if values.samples else "the model"))
    console.table(_short(flow.tensor), ("", ""), rows)
    producer = (
        []
        if flow.producer is None
        else [("made by", flow.producer, f"output {flow.producer.position}", flow.producer.reads)]
    )
    readers = [
        ("read by", node, "a graph inside" if node.position is None else f"input {node.position}", node.makes)
        for node in flow.readers
    ]
    console.table(
        "Made and read",
        ("", "node", "operator", "as", "place", "from or to"),
        [
            (part, _short(node.node), node.operator, position, node.place + 1, ", ".join(map(_short, others)))
            for part, node, position, others in (*producer, *readers)
        ],
    )


def _show_work(console: Console, found: Analysis, work: Work, largest: int) -> None:
    total = work.total
    console.table(
        "Multiply-adds by operator",
        ("operator", "multiply-adds", "share"),
        [(name, f"{count:,}", _share(count, total)) for name, count in (work.by_operator() | {"all": total}).items()],
        f"lengths: {_lengths(found)}; {work.other_nodes} nodes do something else"
        + (f"; {work.unknown_nodes} of unknown shape are left out" if work.unknown_nodes else ""),
    )
    ranked = sorted(work.nodes, key=lambda node: -(node.multiply_adds or 0))
    console.table(
        "Multiply-adds by node",
        ("node", "operator", "output", "multiply-adds", "share"),
        [
            (
                _short(node.node),
                node.operator,
                "unknown" if node.output_shape is None else _dims(node.output_shape),
                "unknown" if node.multiply_adds is None else f"{node.multiply_adds:,}",
                _share(node.multiply_adds or 0, total),
            )
            for node in ranked[:largest]
        ],
        _caption(len(ranked), largest),
    )


def _show_partition(console: Console, partition: Partition, largest: int) -> None:
    console.table(
        "What runs on integers",
        ("", ""),
        [
            ("integer subgraphs", len(partition.regions)),
            ("nodes in them", partition.integer_nodes),
            ("nodes in float", sum(partition.float_operators.values())),
            ("multiply-adds on integers", _share(partition.integer_multiply_adds, partition.multiply_adds)),
            ("conversions", len(partition.borders)),
            ("values they convert", f"{partition.converted_elements:,}"),
        ],
        "as onnxruntime's CPU provider runs it, with operators fused",
    )
    if partition.regions:
        console.table(
            "Integer subgraphs",
            ("nodes", "operators", "first", "last", "multiply-adds"),
            [
                (
                    len(region.nodes),
                    _counts(region.operators),
                    _short(region.nodes[0]),
                    _short(region.nodes[-1]),
                    f"{region.multiply_adds:,}",
                )
                for region in partition.regions[:largest]
            ],
            _caption(len(partition.regions), largest),
        )
    ranked = sorted(partition.borders, key=lambda border: -(border.elements or 0))
    if ranked:
        console.table(
            "Conversions",
            ("tensor", "direction", "values", "between", "and"),
            [
                (
                    _short(border.tensor),
                    border.direction,
                    "unknown" if border.elements is None else f"{border.elements:,}",
                    _short(border.behind or _INPUT),
                    ", ".join(map(_short, border.before)) or "the caller",
                )
                for border in ranked[:largest]
            ],
            _caption(len(ranked), largest),
        )
    if partition.float_operators:
        console.table("Nodes in float", ("operator", "nodes"), list(partition.float_operators.items()))


def _memory_json(memory: MemoryUse, lowest_peak: int | None) -> dict[str, Any]:
    return {
        "peak_bytes": memory.peak_bytes,
        "peak_node": memory.nodes[memory.peak_at] if memory.nodes else None,
        "peak_place": memory.peak_at,
        "in_place_peak_bytes": memory.reused_peak_bytes,
        "reordered_peak_bytes": lowest_peak,
        "alive_at_peak": [entry.tensor for entry in memory.alive_at(memory.peak_at)],
        "unknown": list(memory.unknown),
        "nodes": [
            {"node": node, "bytes": bytes_, "in_place_bytes": reused}
            for node, bytes_, reused in zip(memory.nodes, memory.bytes_at, memory.reused_bytes_at, strict=True)
        ],
        "tensors": [{**asdict(entry), "size": _size_json(entry.size)} for entry in memory.lifetimes],
    }


def _flow_json(flow: TensorFlow, values: TensorRange | None) -> dict[str, Any]:
    return {**asdict(flow), "size": _size_json(flow.size), "range": None if values is None else asdict(values)}


def _work_json(work: Work) -> dict[str, Any]:
    return {
        "total": work.total,
        "unknown_nodes": work.unknown_nodes,
        "other_nodes": work.other_nodes,
        "by_operator": work.by_operator(),
        "nodes": [asdict(node) for node in work.nodes],
    }


def _partition_json(partition: Partition) -> dict[str, Any]:
    return {
        **asdict(partition),
        "integer_nodes": partition.integer_nodes,
        "integer_multiply_adds": partition.integer_multiply_adds,
        "converted_elements": partition.converted_elements,
    }


def _size_json(size: TensorSize | None) -> dict[str, Any] | None:
    return None if size is None else {"dtype": _dtype(size), "shape": list(size.shape), "nbytes": size.nbytes}


def _short(name: str) -> str:
    """Leaves the middle of a very long name out."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2 - 1]} … {name[1 - _LONGEST_NAME // 2 :]}"


def _lengths(found: Analysis) -> str:
    if found.measured:
        return "those of the samples"
    return ", ".join(f"{name}={length}" for name, length in found.lengths.items()) or "those of the graph"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _bytes(count: int) -> str:
    return f"{count:,} bytes ({count / 1e6:.2f} MB)"


def _dtype(size: TensorSize | None) -> str:
    return "unknown" if size is None else str(size.dtype.numpy().name)


def _shape(size: TensorSize | None) -> str:
    return "unknown" if size is None else _dims(size.shape)


def _dims(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def _caption(count: int, shown: int) -> str | None:
    return f"the largest {shown} of {count}; --largest shows more, --json all" if count > shown else None
