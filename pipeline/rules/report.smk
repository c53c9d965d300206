# Accuracy, fusion of the streams, attention against truth, and the one page that shows everything.

INDEXES = [f"--index={stage}={index_file(stage)}" for stage in STORES]


rule evaluate:
    input:
        manifest=MANIFEST,
        runs=RUNS,
        scores=[run["scores"] for run in runs()],
        indexes=[index_file(stage) for stage in STORES],
    output:
        RESULTS,
    log:
        f"{WORK}/logs/evaluate.log",
    benchmark:
        f"{WORK}/benchmarks/evaluate/all.tsv"
    threads: 1
    resources:
        mem_mb=1000 + WHOLE_MB,
        runtime=60,
    params:
        settings=json.dumps(CONFIG.evaluation),
        indexes=INDEXES,
        version=VERSIONS["evaluate"],
    shell:
        "{PYTHON} -m stages.evaluate --manifest {input.manifest:q} --runs {input.runs:q}"
        " {params.indexes:q} --settings {params.settings:q} --out {output:q} 2> {log:q}"


rule report:
    input:
        manifest=MANIFEST,
        results=RESULTS,
        runs=RUNS,
        notes=NOTES,
        indexes=[index_file(stage) for stage in STORES],
        histories=[
            f"{run['folder']}/history.csv"
            for run in runs()
            if run["experiment"] != "baseline"
        ],
        san_histories=sorted(
            {
                f"{run['san_folder']}/history.csv"
                for run in runs()
                if run.get("san_folder")
            }
        ),
    output:
        report(REPORT, category="wherewhen"),
    log:
        f"{WORK}/logs/report.log",
    benchmark:
        f"{WORK}/benchmarks/report/all.tsv"
    threads: 1
    resources:
        mem_mb=2000 + WHOLE_MB,
        runtime=60,
    params:
        config=canonical(CONFIG),
        indexes=INDEXES,
        version=VERSIONS["report"],
        benchmarks=f"{WORK}/benchmarks",
        damaged=f"{WORK}/damaged",
    shell:
        "{PYTHON} -m stages.report --config {params.config:q} --manifest {input.manifest:q} --results {input.results:q}"
        " {params.indexes:q} --runs {input.runs:q} --notes {input.notes:q}"
        " --benchmarks {params.benchmarks:q} --damaged {params.damaged:q} --out {output:q} 2> {log:q}"
