"""Search: exact beside faiss and numpy, engines beside the exact one, and an index of a million vectors.

    python benchmarks/search.py exact [--rows 200000] [--dim 384] [--queries 2000] [--threads 1 2]
    python benchmarks/search.py engines [--rows 200000] ...   # LanceDB, faiss HNSW and IVF, usearch
    python benchmarks/search.py index [--rows 1000000]  # from a table: build time, size, memory, queries

Contenders take turns in one process; warm-ups come first; best, median and the ratio of each round are
printed. Vectors: clusters of unit vectors (--kind clusters, like features of images), or of no structure
(--kind spread, where approximate engines have it hardest).
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

K = 10


def vectors(rows, dim, kind, seed=0):
    """Unit vectors, fp32. clusters: 1,000 centres, within-class angles of some 45 degrees."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, dim), dtype=np.float32)
    if kind == "clusters":
        centres = np.random.default_rng(99).standard_normal((1000, dim), dtype=np.float32) + 0.7
        x += centres[generator.integers(0, 1000, rows)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def recall(found, exact):
    return float(np.mean([len({*a.tolist()} & {*b.tolist()}) / K for a, b in zip(found, exact)]))


def in_turn(contenders, queries, rounds, clock):
    """Queries a second of each in each round, and what each finds."""
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    found = {name: search(queries) for name, search in contenders.items()}
    rates = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, search in contenders.items():
            start = now()
            search(queries)
            rates[name].append(len(queries) / (now() - start))
    return rates, found


def told(name, rates, against, **more):
    ratios = [a / b for a, b in zip(rates, against)]
    line = {
        "name": name, "best": round(max(rates), 1), "median": round(statistics.median(rates), 1),
        "ratio_median": round(statistics.median(ratios), 2), "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2), **more,
    }  # fmt: skip
    print(json.dumps(line), flush=True)


# ---------------------------------------------------------------- exact
def exact(options):
    """Each number of threads in a process of its own."""
    for threads in options.threads:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "exact-once", *options.words]
        subprocess.run(command, env=environment, check=True)


def exact_once(options):
    import faiss
    import torch

    from omma.ops.exact import Base

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    base = vectors(options.rows, options.dim, options.kind)
    queries = vectors(options.queries, options.dim, options.kind, 1)
    flat = faiss.IndexFlatIP(options.dim)
    flat.add(base)
    ours, plain = Base([base], largest=1.00001), Base([base], largest=1.00001)
    plain.__dict__["bf16"] = False

    def numpy_search(asked):
        parts = []
        for at in range(0, len(asked), 64):
            product = asked[at : at + 64] @ base.T
            best = np.argpartition(product, -K, axis=1)[:, -K:]
            order = np.argsort(-np.take_along_axis(product, best, 1), axis=1)
            parts.append(np.take_along_axis(best, order, 1))
        return np.concatenate(parts)

    contenders = {
        "omma": lambda asked: ours.nearest(asked, K).indices,
        "omma in fp32": lambda asked: plain.nearest(asked, K).indices,
        "faiss flat": lambda asked: flat.search(asked, K)[1],
        "numpy": numpy_search,
    }
    for size in options.batches:
        asked = queries[:size]
        rates, found = in_turn(contenders, asked, options.rounds, options.clock)
        right = by_fp64(asked[:100], base)
        for name in contenders:
            told(
                name, rates[name], rates["faiss flat"], threads=threads, batch=size, rows=options.rows,
                dim=options.dim, kind=options.kind, recall=recall(found[name][:100], right[: len(asked)]),
            )  # fmt: skip


def by_fp64(queries, base):
    """Exact by products in fp64, as plainly as can be."""
    asked, size = queries.astype(np.float64), 20_000
    blocks = (base[at : at + size].astype(np.float64) for at in range(0, len(base), size))
    products = np.concatenate([asked @ block.T for block in blocks], axis=1)
    return np.argsort(-products, axis=1, kind="stable")[:, :K]


# ---------------------------------------------------------------- approximate engines
def engines(options):
    import faiss
    import torch

    from omma.ops.exact import Base

    threads = options.threads[0]
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    base = vectors(options.rows, options.dim, options.kind)
    queries = vectors(options.queries, options.dim, options.kind, 1)
    ours = Base([base], largest=1.00001)
    right = ours.nearest(queries, K).indices
    search = {"omma, exact": lambda asked: ours.nearest(asked, K).indices}
    built, known = {"omma, exact": 0.0}, {"omma, exact": 1.0}
    chosen = {"omma, exact": ""}
    for name, make in (
        ("faiss HNSW", faiss_hnsw), ("faiss IVF", faiss_ivf), ("usearch", usearch_hnsw), ("LanceDB", lance),
    ):  # fmt: skip
        if name in options.without:
            continue
        start = time.perf_counter()
        settings, at = make(base, threads, options.folder)
        built[name] = time.perf_counter() - start
        for setting in settings:  # the cheapest that reaches the recall
            found = at(setting)(queries)
            search[name], known[name], chosen[name] = at(setting), recall(found, right), setting
            if known[name] >= options.recall:
                break
    rates, _ = in_turn(search, queries, options.rounds, options.clock)
    for name in search:
        told(
            name, rates[name], rates["omma, exact"], threads=threads, recall=round(known[name], 4),
            build_s=round(built[name], 1), setting=chosen[name], rows=options.rows, dim=options.dim,
            queries=len(queries), kind=options.kind,
        )  # fmt: skip


def faiss_hnsw(base, threads, folder):
    import faiss

    index = faiss.IndexHNSWFlat(base.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(base)

    def at(ef):
        def search(asked):
            index.hnsw.efSearch = ef
            return index.search(asked, K)[1]

        return search

    return (16, 32, 64, 128, 256, 512, 1024), at


def faiss_ivf(base, threads, folder):
    import faiss

    lists = int(np.sqrt(len(base)))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(base.shape[1]), base.shape[1], lists, faiss.METRIC_INNER_PRODUCT
    )
    index.train(base[:: max(1, len(base) // (40 * lists))])
    index.add(base)

    def at(probes):
        def search(asked):
            index.nprobe = probes
            return index.search(asked, K)[1]

        return search

    return (1, 2, 4, 8, 16, 32, 64, 128, 256), at


def usearch_hnsw(base, threads, folder):
    from usearch.index import Index

    index = Index(ndim=base.shape[1], metric="ip", dtype="bf16", connectivity=32, expansion_add=200)
    index.add(np.arange(len(base)), base, threads=threads)

    def at(ef):
        def search(asked):
            index.expansion_search = ef
            return np.asarray(index.search(asked, K, threads=threads).keys, np.int64)

        return search

    return (16, 32, 64, 128, 256, 512, 1024), at


def lance(base, threads, folder):
    """As `omma index --engine lancedb` builds it."""
    import lancedb
    import pyarrow as pa

    from omma.retrieval import lance as engine

    values = pa.FixedSizeListArray.from_arrays(pa.array(base.ravel()), base.shape[1])
    table = pa.table([pa.array(np.arange(len(base))), values], schema=engine._schema(base.shape[1]))
    made = lancedb.connect(folder).create_table("vectors", data=table, mode="overwrite")
    engine.divide(made, engine.partitions(len(base)))
    return (1, 2, 4, 8, 16, 32, 64, 128), lambda probes: lambda asked: engine._ask(made, probes, asked, K)


# ---------------------------------------------------------------- an index on disk
def index(options):
    """In processes of their own, so that peaks of memory are theirs."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        table = Path(folder) / "table.parquet"
        write_table(table, options)
        for step in ("fill", "one", "many"):
            command = [sys.executable, __file__, "index-step", *options.words, "--step", step, "--at", folder]
            subprocess.run(command, check=True)


def write_table(table, options, size=65_536):
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [("path", pa.string()), ("label", pa.string()), ("vector", pa.list_(pa.float32(), options.dim))]
    facts = {"omma": json.dumps({"model": {"digest": "0" * 64, "preprocess": {}}})}
    schema = pa.schema(fields, metadata=facts)
    with pq.ParquetWriter(table, schema, compression="zstd") as writer:
        for at in range(0, options.rows, size):
            n = min(size, options.rows - at)
            values = pa.array(vectors(n, options.dim, options.kind, 7 + at).ravel())
            columns = [
                [f"{(at + i) % 100:02d}/{at + i:08d}.jpg" for i in range(n)],
                [f"class {(at + i) % 100}" for i in range(n)],
                pa.FixedSizeListArray.from_arrays(values, options.dim),
            ]
            writer.write_table(pa.table([pa.array(c) for c in columns[:2]] + columns[2:], schema=schema))


def index_step(options):
    import torch

    from omma import index as build
    from omma.retrieval.store import Index

    torch.set_num_threads(options.threads[0])
    place, start = Path(options.at) / "i", time.perf_counter()
    facts = {"step": options.step, "rows": options.rows, "dim": options.dim, "threads": options.threads[0]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if options.step == "fill":
        build(vectors=Path(options.at) / "table.parquet", out=place)
        facts["bytes"] = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        facts["bytes_of_vectors"] = 4 * options.rows * options.dim
    else:
        opened = Index.open(place)
        facts["open_s"] = round(time.perf_counter() - start, 3)
        queries = vectors(1 if options.step == "one" else options.queries, options.dim, options.kind, 1)
        for name in ("first_s", "again_s"):
            start = time.perf_counter()
            opened.search(queries, K)
            facts[name] = round(time.perf_counter() - start, 3)
        if options.step == "one":
            start = time.perf_counter()
            opened.search(queries, K, where="label = 'class 7'")
            facts["where_s"] = round(time.perf_counter() - start, 3)
        else:
            facts["queries_a_second"] = round(len(queries) / facts["again_s"], 1)
    facts["s"] = round(time.perf_counter() - start, 2)
    facts["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    facts["peak_mb_of_imports"] = round(before / 1024)
    print(json.dumps(facts), flush=True)


def main():
    what = {
        "exact": exact, "exact-once": exact_once, "engines": engines, "index": index, "index-step": index_step
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=what)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--batches", type=int, nargs="+", default=[])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a busy machine")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--kind", choices=["clusters", "spread"], default="clusters")
    parser.add_argument("--without", nargs="+", default=[])
    parser.add_argument("--folder", default=None, help="for large files")
    parser.add_argument("--step")
    parser.add_argument("--at")
    options = parser.parse_args()
    options.words = sys.argv[2:]
    options.batches = options.batches or [options.queries]
    own = None if options.folder or options.what != "engines" else tempfile.mkdtemp()
    options.folder = options.folder or own
    try:
        what[options.what](options)
    finally:
        if own:
            shutil.rmtree(own)


if __name__ == "__main__":
    main()
