"""Run all benchmarks, or those named, and print one table."""

from __future__ import annotations

import bench_callbacks
import bench_client_cpu
import bench_codec
import bench_download
import bench_import
import bench_ledger
import bench_memory
import bench_settle
import bench_window
from _figures import main

if __name__ == "__main__":
    main(
        bench_import.measure,
        bench_window.measure,
        bench_memory.measure,
        bench_settle.measure,
        bench_codec.measure,
        bench_client_cpu.measure,
        bench_callbacks.measure,
        bench_ledger.measure,
        bench_download.measure,
    )
