# Accuracy, fusion of the streams, and the one page that shows everything.


rule evaluate:
    input:
        manifest=MANIFEST,
        scores=[run["scores"] for run in runs()],
    output:
        RESULTS,
    log:
        f"{WORK}/logs/evaluate.log",
    benchmark:
        f"{WORK}/benchmarks/evaluate/all.tsv"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        runs=json.dumps(runs(), sort_keys=True),
        fuse_on=CONFIG.fuse_on,
    shell:
        "{PYTHON} -m stages.evaluate --manifest {input.manifest} --runs {params.runs:q}"
        " --fuse-on {params.fuse_on} --out {output} 2> {log}"


rule report:
    input:
        manifest=MANIFEST,
        results=RESULTS,
        indexes=[index_file(stage) for stage in STORES],
        histories=[
            f"{run['folder']}/history.csv"
            for run in runs()
            if run["experiment"] != "baseline"
        ],
    output:
        report(REPORT, category="wherewhen"),
    log:
        f"{WORK}/logs/report.log",
    threads: 1
    resources:
        mem_mb=2000,
    params:
        config=canonical(CONFIG),
        indexes=[f"--index {stage}={index_file(stage)}" for stage in STORES],
        runs=json.dumps(runs(), sort_keys=True),
        benchmarks=f"{WORK}/benchmarks",
    shell:
        "{PYTHON} -m stages.report --config {params.config:q} --manifest {input.manifest} --results {input.results}"
        " {params.indexes} --runs {params.runs:q} --benchmarks {params.benchmarks} --out {output} 2> {log}"
