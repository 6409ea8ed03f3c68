"""Where a network and its training go: copies or shards, compiled blocks or plain ones (docs/scale.md)."""


def state_bytes(trained: int, others: int, *, half_copy: bool) -> int:
    """Bytes of a whole network beside its activations, from numbers of parameters.

    trained: weights, gradients and AdamW's two moments in fp32. others: weights alone, such as a teacher's.
    half_copy: is there a copy of all weights in bf16, too?
    """
    return 16 * trained + 4 * others + 2 * (trained + others) * half_copy


def shard_blocks(
    option: str, *, processes: int, state: int, memory: int | None, blocks: bool
) -> tuple[bool, list[str]]:
    """Are a network's blocks sharded over the processes (`--shard`), and the notes for the user?

    option: "fsdp", "none" or "auto", which shards if a whole copy leaves less than a fifth of a GPU for
    activations. state: bytes of that copy. memory: of the smallest GPU, in bytes; None on a CPU. blocks: has
    the network any?
    """
    if option != "auto":
        return option == "fsdp", []
    if processes == 1 or memory is None or state <= 0.8 * memory:
        return False, []
    why = f"a copy of network and optimizer takes {state / 2**30:.0f} GiB of a GPU's {memory / 2**30:.0f}"
    if not blocks:
        return False, [f"{why}, and it has no blocks to shard: expect to run out of memory"]
    return True, [f"{why}: its blocks are sharded over {processes} processes"]


def compile_blocks(
    option: str, *, device: str, blocks: bool, profiled: bool, sharded: bool, compiled_before: bool
) -> str:
    """Are a network's blocks compiled (`--compile`): "on", "off", or "auto", which a trial decides?

    blocks: has the network any? profiled, sharded: are they timed from inside, or sharded over processes?
    compiled_before: were they compiled when the run began? Raises ValueError for what is impossible.
    """
    if option == "on":
        if not blocks:
            raise ValueError("--compile works block by block, and this model has none: leave it out")
        if profiled or sharded:
            other = "--profile times blocks from inside" if profiled else "--shard fsdp shards blocks"
            raise ValueError(f"{other}, which compiled blocks do not allow: leave --compile out or this")
    if option != "auto" or compiled_before:
        return "on" if compiled_before else option
    return "auto" if device == "cuda" and blocks and not (profiled or sharded) else "off"
